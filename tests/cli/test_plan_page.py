"""The page of `tsc plan --html`: its data, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.cli.tiny import ROOT

from tsc.front import ModelSource, place_model, read_model
from tsc.parser import parse
from tsc.plan_page import plan_page
from tsc.spans import Source
from tspasses.placed import Options
from tspasses.plan import plan_of

CONFIG = json.loads((ROOT / "examples" / "token_sharded" / "config.json").read_text())
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"


def page_of(model: ModelSource, ranks: int = 4, tokens: int = 1) -> str:
    placed = place_model(model, CONFIG, {"tp": ranks}, Options(tokens=tokens))
    return plan_page(plan_of(placed), placed, model.name)


def data_of(page: str) -> Any:
    found = re.search(r"^const data = (.*);$", page, re.MULTILINE)
    assert found is not None
    return json.loads(found[1])


def test_the_page_loads_nothing() -> None:
    page = page_of(read_model(ROOT / "models" / "llama.ts"))
    assert set(re.findall(r"https?://[\w./]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|<img|src=|@import|fetch\(", page)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("model", ["models/llama.ts", "models/gemma3.ts", "examples/token_sharded/token_sharded.ts"])
def test_every_collective_has_a_node_and_every_node_a_place(model: str, ranks: int) -> None:
    placed = place_model(
        read_model(ROOT / model), CONFIG | {"query_pre_attn_scalar": 64, "sliding_window": 512}, {"tp": ranks}, Options(tokens=4096)
    )
    data = data_of(plan_page(plan_of(placed), placed, model))
    nodes = [(m["name"], n["collective"]) for m in data["modules"] for n in m["nodes"] if n["kind"] == "collective"]
    assert sorted(nodes) == sorted((c["module"], c["id"]) for c in data["collectives"])
    assert bool(nodes) == (ranks > 1)
    for module in data["modules"]:
        boxes = [(n["x"], n["y"], n["width"], n["height"]) for n in module["nodes"]]
        for i, (x, y, width, height) in enumerate(boxes):
            assert 0 <= x <= module["width"] - width
            for other in boxes[i + 1 :]:  # no two overlap
                assert x + width <= other[0] or other[0] + other[2] <= x or y + height <= other[1] or other[1] + other[3] <= y
        assert all(module["nodes"][a]["y"] < module["nodes"][b]["y"] for a, b in module["edges"])


def test_no_text_of_a_model_ends_the_script() -> None:
    text = (ROOT / "models" / "llama.ts").read_text() + "// </script><script>alert(1)</script>\n"
    source = Source("odd.ts", text)
    page = page_of(ModelSource("odd", source, parse(source)))
    assert page.count("</script>") == 1
    assert data_of(page)["source"][-2].endswith("</script><script>alert(1)</script>")


@pytest.mark.slow
def test_a_browser_shows_a_picked_collective_everywhere(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    page = tmp_path / "plan.html"
    page.write_text(page_of(read_model(ROOT / "models" / "llama.ts")), encoding="utf-8")

    def shown(fragment: str, *options: str) -> str:
        command = [chromium, *QUIET.split(), f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1600,1000", *options]
        done = subprocess.run(
            [*command, "--virtual-time-budget=2000", f"{page.as_uri()}{fragment}"], capture_output=True, text=True, check=True
        )
        return done.stdout

    plain, picked = shown("", "--dump-dom"), shown("#C3", "--dump-dom")
    assert "532,480 B a token" in plain
    assert plain.count('class="bar"') == 4
    assert not re.search(r'class="[^"]*picked', plain)
    assert re.search(r'<li data-line="52" class="forces picked"|<li class="forces picked" data-line="52"', picked)
    assert re.search(r'<g class="collective picked" data-id="C3">', picked)
    assert '<tr class="picked"' in picked
    assert 'class="bar picked"' in picked
    assert "all_reduce over tp, 4 ranks" in picked
    assert re.search(r'aria-selected="true">Layer x 32<', picked)
    image = tmp_path / "plan.png"
    shown("#C3", f"--screenshot={image}")
    assert image.stat().st_size > 50_000

"""The console examples of docs/errors: each command is run where `workspace` says, and prints what the page shows.

Progress on stderr (`compile: ...`) is left out of the pages, and `...` stands for output that depends on the machine. Examples find
files that the workspace lacks, damaged ones too, made by DAMAGE, or damage one themselves.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Tsc
from tests.cli.importance_files import write_importance
from tests.cli.tiny import CONFIG, LAYER, ROOT, SHAPES, write_checkpoint, write_gguf

EXAMPLE = re.compile(r"^```console (failing|mended)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [p for p in sorted((ROOT / "docs" / "errors").glob("TS*.md")) if "```console" in p.read_text(encoding="utf-8")]
K_PROJ = LAYER + "self_attn.k_proj.weight"


DAMAGE: dict[str, Callable[[], None]] = {
    "TS0506": lambda: write_large_config(Path("large")),
    "TS0511": lambda: write_latent_model(Path("latent")),
    "TS0512": lambda: write_importances(),
    "TS0706": lambda: write_gguf(Path("mamba.gguf"), architecture="mamba"),
    "TS0707": lambda: write_gguf(Path("bert.gguf"), tokenizer="bert"),
    "TS0708": lambda: write_checkpoint(Path("fp8"), kind="F8_E4M3"),
    "TS0709": lambda: write_gguf(Path("odd.gguf"), extra="blk.0.attn_sinks.weight"),
    "TS0710": lambda: write_gguf(Path("longrope.gguf"), rope="longrope"),
    "TS0711": lambda: write_gguf(Path("part.gguf"), parts=3),
    "TS0712": lambda: write_checkpoint(Path("quantized"), quantization_config={"quant_method": "gptq", "bits": 3}),
    "TS0730": lambda: write_checkpoint(Path("renamed"), {n.replace("k_proj", "key_proj"): s for n, s in SHAPES.items()}),
    "TS0731": lambda: write_checkpoint(Path("wide"), SHAPES | {K_PROJ: (16, 32)}),
    "TS0732": lambda: write_checkpoint(Path("biased"), SHAPES | {LAYER + "self_attn.k_proj.bias": (8,)}),
}


def write_importances() -> None:
    write_importance(Path("tiny.importance.safetensors"))
    write_importance(Path("other.importance.safetensors"), config_sha256="0" * 64)


def write_latent_model(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(ROOT / "models" / "deepseek_v3.ts", folder)
    heads = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16}
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 16, "n_shared_experts": 1, "num_experts_per_tok": 2}
    config = CONFIG | heads | experts | {"first_k_dense_replace": 1, "architectures": ["DeepseekV3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


def write_large_config(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 8192, "vocab_size": 128256}))


def _commands(example: str) -> list[tuple[str, str]]:
    """Each command with the output that is shown below it."""
    parts = re.split(r"^\$ (.*)\n", example, flags=re.MULTILINE)
    assert parts[0] == "", "a console example starts with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
@pytest.mark.parametrize("kind", ["failing", "mended"])
def test_a_console_example_prints_what_the_page_shows(page: Path, kind: str, workspace: Path, tsc: Tsc) -> None:
    text = dict(EXAMPLE.findall(page.read_text(encoding="utf-8")))[kind]
    DAMAGE.get(page.stem, lambda: None)()
    code = 0
    for command, shown in _commands(text):
        if command.startswith("tsc "):
            words, _, file = command.partition(" > ")
            code, output = tsc(*shlex.split(words)[1:])
            if file:
                Path(file).write_text(output)
                output = ""
            output = re.sub(r"^compile: .*\n", "", output, flags=re.MULTILINE).replace(f"{workspace}/", "")
        else:
            output = subprocess.run(command, shell=True, cwd=workspace, capture_output=True, text=True, check=True).stdout
        assert shown == "...\n" or output == shown, f"$ {command}\n{output}"
    assert code == (1 if kind == "failing" else 0)
    assert (f"error[{page.stem}]" in text) == (kind == "failing")

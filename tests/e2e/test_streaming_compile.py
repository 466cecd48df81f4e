"""Compiling streams: what it holds at once is bounded by a shard of the checkpoint, not by the whole of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.e2e.conftest import CONFIG, tensors

PEAK = """
import sys
from tsc.cli import main
try:
    main(sys.argv[1:])
finally:
    # not ru_maxrss: that starts from the size of the process that this one was forked from
    print("peak", next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_the_peak_of_a_sharded_checkpoint_is_bounded_by_a_shard(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_size": 2048, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8}
    config |= {"intermediate_size": 16384, "num_hidden_layers": 12, "vocab_size": 2048}
    (tmp_path / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    shapes = {n: t.shape for n, t in tensors({**config, "num_hidden_layers": 1}).items()}
    for i in range(12):
        shard = {n.replace("layers.0", f"layers.{i}"): s for n, s in shapes.items() if i == 0 or "layers" in n}
        name = f"model-{i:05}-of-00012.safetensors"
        save_file({n: torch.full(s, 0.01, dtype=torch.bfloat16) for n, s in shard.items()}, tmp_path / name)
        index |= dict.fromkeys(shard, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sizes = [p.stat().st_size for p in tmp_path.glob("*.safetensors")]
    bound = 1.5 * max(sizes) + 1e9
    assert sum(sizes) > 1.5 * bound, "a checkpoint that would fit whole shows nothing"
    command = [sys.executable, "-c", PEAK, "compile", "--weights", str(tmp_path), "-o", str(tmp_path / "x.tsa"), "--mesh", "tp=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.rsplit("peak ", 1)[1])
    assert peak < bound, f"{peak / 1e9:.2f} GB, allowed {bound / 1e9:.2f}"

"""Whole-process times of `tsc check` and `tsc plan`, the commands that answer while one types.

usage: python benchmarks/front_end.py [RUNS]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LLAMA_3_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(LLAMA_3_70B))
        tsc = [sys.executable, "-m", "tsc"]
        commands = {f"tsc check models/{m}.ts": [*tsc, "check", str(ROOT / f"models/{m}.ts")] for m in ("llama", "qwen3", "gemma3")}
        plan = [*tsc, "plan", str(ROOT / "models/llama.ts"), "--config", str(config)]
        commands |= {f"tsc plan, Llama 3 70B, tp={n}": [*plan, "--mesh", f"tp={n}"] for n in (4, 8, 16)}
        commands["python -c pass"] = [sys.executable, "-c", "pass"]
        print(f"{'command':32} {'median':>8} {'least':>8} {'most':>8}   seconds, {runs} runs after one warm-up")
        for name, command in commands.items():
            seconds(command)
            times = [seconds(command) for _ in range(runs)]
            print(f"{name:32} {statistics.median(times):8.3f} {min(times):8.3f} {max(times):8.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)

"""Whole-process times of `tsc check` and `tsc plan`, the commands that answer while one types.

usage: python benchmarks/front_end.py [RUNS]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import DEEPSEEK_V3, KIMI_K2, LLAMA_3_70B

ROOT = Path(__file__).parents[1]


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds, and the process' peak resident MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tsc = [sys.executable, "-m", "tsc"]

        def plan(model: str, config: Mapping[str, Any], mesh: str) -> list[str]:
            path = Path(folder) / f"{config['vocab_size']}-{config['hidden_size']}.json"
            path.write_text(json.dumps(dict(config)))
            return [*tsc, "plan", str(ROOT / f"models/{model}.ts"), "--config", str(path), "--mesh", mesh]

        commands = {f"tsc check models/{m}.ts": [*tsc, "check", str(ROOT / f"models/{m}.ts")] for m in ("llama", "qwen3", "gemma3")}
        commands |= {f"tsc plan, Llama 3 70B, tp={n}": plan("llama", LLAMA_3_70B, f"tp={n}") for n in (4, 8, 16)}
        for mesh in ("tp=64", "dp=8,tp=8"):
            commands[f"tsc plan, DeepSeek-V3, {mesh}"] = plan("deepseek_v3", DEEPSEEK_V3, mesh)
            commands[f"tsc plan, Kimi-K2, {mesh}"] = plan("deepseek_v3", KIMI_K2, mesh)
        commands["python -c pass"] = [sys.executable, "-c", "pass"]
        print(f"{'command':34} {'median':>8} {'least':>8} {'most':>8} {'MB':>6}   seconds, {runs} runs after one warm-up; peak memory")
        for name, command in commands.items():
            measure(command)
            found = [measure(command) for _ in range(runs)]
            times = [seconds for seconds, _ in found]
            most = max(size for _, size in found)
            print(f"{name:34} {statistics.median(times):8.3f} {min(times):8.3f} {max(times):8.3f} {most:6.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)

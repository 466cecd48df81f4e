"""vLLM's server (CPU build) on a Hugging Face directory.

usage: python benchmarks/peers/vllm_server.py MODEL_DIR [--port 8002] [--users 16] [--context 4096] [--threads 2] [--python PATH]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cpu_vllm

try:
    from peers.process import CONVERSATION, serve_until_interrupted
except ImportError:  # run by itself
    from process import CONVERSATION, serve_until_interrupted  # type: ignore[import-not-found, no-redef]

_CACHE_GIB = 4


def command(python: Path, model: Path, port: int, users: int, context: int) -> Sequence[str]:
    sizes = ["--max-model-len", str(context), "--max-num-seqs", str(users)]
    names = ["--served-model-name", "model", "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port)]
    return [
        str(python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        *names,
        *sizes,
        "--enable-prompt-tokens-details",
        "--chat-template",
        str(CONVERSATION),
    ]


def environment(python: Path, threads: int) -> Mapping[str, str]:
    found = cpu_vllm.environment(python, threads, sorted(os.sched_getaffinity(0)))
    del found["VLLM_ENABLE_V1_MULTIPROCESSING"]  # as a server it has an engine process, which is its default
    return {**found, "VLLM_CPU_KVCACHE_SPACE": str(_CACHE_GIB)}


def version(python: Path) -> str:
    ask = "from importlib.metadata import version; print(version('vllm-cpu'))"
    return subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    for name, default in (("port", 8002), ("users", 16), ("context", 4096), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    made = command(given.python, given.model, given.port, given.users, given.context)
    serve_until_interrupted(made, given.port, environment(given.python, given.threads))


if __name__ == "__main__":
    main()

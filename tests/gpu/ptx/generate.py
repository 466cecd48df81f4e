"""Compile the test kernels to the PTX that lies beside them: `python tests/gpu/ptx/generate.py [FOLDER]`; needs nvcc.

What is here was made by the nvcc of `VERSION`. Line comments, which name the compiler's build, are left out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VERSION = "V13.0.88"
HERE = Path(__file__).resolve().parent
TARGETS = {
    "attention_sm90": ["-arch=sm_90a"],
    "attention_sm100": ["-gencode", "arch=compute_100a,code=compute_100a"],
    "pair_sm100": ["-gencode", "arch=compute_100a,code=compute_100a"],
    "narrow_sm100": ["-gencode", "arch=compute_100a,code=compute_100a"],
}


def compile_to_ptx(name: str, to: Path) -> Path:
    """Where the PTX is."""
    path = to / f"{name}.ptx"
    subprocess.run(["nvcc", "-std=c++17", "-O3", "-ptx", *TARGETS[name], str(HERE / f"{name}.cu"), "-o", str(path)], check=True)
    lines = (line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("//"))
    path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    for name in TARGETS:
        print(compile_to_ptx(name, Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))

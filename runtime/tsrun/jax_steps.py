"""jax.json: the programs of an artifact for JAX, and what they hold. Imports no JAX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tsrun.artifact import Artifact, Manifest
from tsrun.errors import ArtifactError, RequestError
from tsrun.limits import LimitOptions

JAX_STEPS = "jax.json"
FORMAT = 1
_USUAL = LimitOptions()


class StepInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """i32, whole on each rank; shape: of numbers, T, S and P."""

    name: str
    step: str
    window: int
    shape: list[int | str]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each rank has of a cache or a state."""

    dtype: str
    shape: list[int]


class WeightPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each rank has of a weight."""

    name: str
    dtype: str
    shape: list[int]


class Bucket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps of up to so many tokens and rows of the result are padded to these, and run by `file`, of a plan."""

    plan: int
    tokens: int
    rows: int
    file: str


class JaxSteps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """pages: by window, as they are at most; kept: states; states: how many pages each has; columns: of block tables."""

    format: int
    platforms: list[str]
    page_size: int
    max_step_tokens: int
    max_sequences: int
    pages: list[tuple[int, int]]
    states: int
    columns: int
    inputs: list[StepInput]
    weights: list[WeightPart]
    caches: list[Part]
    kept: list[Part]
    steps: list[Bucket]

    def bucket(self, tokens: int, rows: int) -> Bucket:
        """The first that a step fits in."""
        return next(b for b in self.steps if b.tokens >= tokens and b.rows >= rows)


def is_for_jax(manifest: Manifest) -> bool:
    """Whether one process runs an artifact on all of its devices, through JAX."""
    return manifest.target.partition("+")[0] == "jax"


def read_steps(path: Path) -> JaxSteps:
    """Of an artifact's folder. Raises ArtifactError."""
    file = path / JAX_STEPS
    try:
        found = msgspec.json.decode(file.read_bytes(), type=JaxSteps)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(
            str(file), f"is not what this tsrun knows ({error})", "compile it again with the `tsc` of this installation"
        ) from None
    if found.format != FORMAT:
        raise ArtifactError(str(file), f"has format {found.format}, this tsrun reads {FORMAT}", "compile it again with `tsc compile`")
    return found


def fitting(options: LimitOptions, artifact: Artifact) -> LimitOptions:
    """The options within what the artifact's programs hold. Raises RequestError where more was asked for."""
    if options.target is not None:
        raise RequestError("target", "an artifact for JAX runs through JAX, on a CPU too", "leave it out, or compile it for --target cpu")
    if options.branches is not None:
        raise RequestError("branches", "the programs of an artifact for JAX have no pages for them", "leave it out")
    steps = read_steps(artifact.path)
    if options.cache_bytes is not None:
        raise RequestError("cache-bytes", "an artifact for JAX has a cache of fixed size", "give --steps pages=N to `tsc compile`")
    if options.page_size != steps.page_size:
        raise RequestError("page-size", f"got {options.page_size}, and the artifact's programs have {steps.page_size}", "leave it out")
    within: dict[str, Any] = {
        name: _within(name, asked, most, usual)
        for name, asked, most, usual in (
            ("max_sequences", options.max_sequences, steps.max_sequences, _USUAL.max_sequences),
            ("max_step_tokens", options.max_step_tokens, steps.max_step_tokens, _USUAL.max_step_tokens),
            ("num_pages", options.num_pages, dict(steps.pages)[0], None),
        )
    }
    return replace(options, **within)


def _within(name: str, asked: int | None, most: int, usual: int | None) -> int:
    """The size, where it fits. usual: what is asked for where nobody does."""
    if asked is not None and asked > most and asked != usual:
        raise RequestError(
            name.replace("_", "-"), f"got {asked}, and the artifact's programs hold {most}", "compile it with larger --steps"
        )
    return most if asked is None else min(asked, most)


def require_no_threads(threads: int | None) -> None:
    """XLA has threads of its own. Raises RequestError."""
    if threads is not None:
        raise RequestError("threads", "XLA takes the processors that it may use", "leave it out, or start tsrun under `taskset`")

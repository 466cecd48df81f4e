"""Where the drafts of an engine come from, by what was asked for and what its artifact can verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsrun.errors import RequestError
from tsrun.guesses import OwnEntry
from tsrun.limits import LimitOptions, Limits, Speculate
from tsrun.speculation import Speculation

if TYPE_CHECKING:
    from tsrun.artifact import Artifact, Manifest
    from tsrun.draft_model import DraftModel
    from tsrun.program import Program


def speculation_of(options: LimitOptions, artifact: Artifact, program: Program, limits: Limits, draft: DraftModel | None) -> Speculation:
    """RequestError where what was asked for can not be."""
    source = _source(options, artifact.manifest, program)
    if source == "mtp":
        named = artifact.guessed_tokens()
        return Speculation(source, OwnEntry(program, limits, artifact.manifest.vocabulary, named, options.branches or 0))
    return Speculation(source, draft)


def _source(options: LimitOptions, manifest: Manifest, program: Program) -> Speculate:
    why = "the model gives embeddings" if manifest.gives == "embeddings" else None
    if program.sequence_groups > 1:
        why = "groups of ranks keep sequences of their own, and give the logits of one row of each"
    if program.states:
        why = "a sequence's states can not be taken back to before a draft"
    asked = options.speculate if options.draft is None else "draft"
    if asked not in (None, "off") and why is not None:
        raise RequestError("speculate", f"{why}, so that no drafts can be verified", "leave it out")
    if asked == "mtp" and not (program.drafts and manifest.gives == "logits"):
        raise RequestError("speculate", "the artifact has no entry for drafts", "use `lookup`, or a checkpoint with such layers")
    return "off" if why is not None else asked or "lookup"

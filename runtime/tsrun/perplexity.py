"""What `tsrun perplexity` does: how well a model predicts a text, by the logits after each of its tokens.

Every window of the text is scored but for its first token. Dimensions: T tokens in the step, V vocabulary.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsrun.artifact import Artifact, open_artifact
from tsrun.errors import ArtifactError, RequestError
from tsrun.generate import loading_progress
from tsrun.output import Output
from tsrun.step import Ints
from tsrun.text_windows import WINDOW, Text, encoded, read_text, run_text
from tsrun.verification import files_read_before

_ROWS = 16
"""Of logits that are looked at together."""


@dataclass(frozen=True, slots=True)
class Score:
    """tokens: that were scored; nats: the sum of what they cost; windows: of the text."""

    tokens: int
    nats: float
    windows: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)


def perplexity(path: Path, file: Path, most_tokens: int | None, threads: int | None, *, as_json: bool) -> None:
    """Print the score of a text file."""
    text = read_text(file)
    artifact = open_artifact(path, progress=loading_progress(), memory=files_read_before())
    found = score(artifact, encoded(artifact, text, most_tokens), threads)
    if as_json:
        print(json.dumps({"tokens": found.tokens, "windows": found.windows, "perplexity": found.perplexity, "nats": found.nats}))
    else:
        print(f"perplexity {found.perplexity:.4f} of {found.tokens} tokens in {found.windows} windows of {WINDOW}")


def score(artifact: Artifact, text: Text, threads: int | None = None) -> Score:
    """Raises RequestError for a text of which no token follows another."""
    if artifact.manifest.gives != "logits":
        what = f"the model gives {artifact.manifest.gives}, and there are no logits to score by"
        raise ArtifactError(str(artifact.path), what, "use one whose entry returns logits")
    if len(text.begin) + len(text.ids) < 2:
        raise RequestError("text", f"it has {len(text.ids)} tokens, none of which follows another", "give a longer one")
    tokens, nats, windows = 0, 0.0, 0
    for window, step, output in run_text(artifact, text, threads):
        targets = window[step.positions[0] + 1 :][: len(step.ids)]
        nats += _nats(output, targets)
        tokens += len(targets)
        windows += int(step.positions[0] == 0)
    return Score(tokens, nats, windows)


def _nats(output: Output, targets: Ints) -> float:
    """What the targets cost, of which row t has the logits that come before."""
    logits_TV = output.numbers()
    total = 0.0
    for first in range(0, len(targets), _ROWS):
        some = targets[first : first + _ROWS]
        rows = logits_TV[first : first + len(some)]
        rows = rows - rows.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(rows).sum(axis=1, dtype=np.float64)) - rows[np.arange(len(some)), some]).sum())
    return total

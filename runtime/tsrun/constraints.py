"""What an engine needs for constrained answers: nothing, until the first one comes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING

from tsrun.allowed import Allowed, Unended
from tsrun.artifact import Artifact
from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest
from tsrun.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tsrun.grammars import Grammars
    from tsrun.matching import Masks


class Constraints:
    """The grammars of an artifact's tokens, and who finds out what they allow. llguidance is not imported before it is needed."""

    def __init__(self, artifact: Artifact, tokenizer: Tokenizer | None, rows: int = 1) -> None:
        """rows: of bits that an answer has, one more than there may be drafts."""
        self._artifact, self._tokenizer, self._rows = artifact, tokenizer, rows
        self._making = Lock()
        self._grammars: Grammars | None = None
        self._masks: Masks | None = None

    def prepare(self, constraint: Constraint) -> None:
        """Compile a constraint, in any thread, so that it need not be waited for. RequestError when it can not be."""
        self._of_artifact().compile(constraint)

    def allowed(self, request: GenerationRequest) -> Allowed | None:
        """What the tokens of a new answer may be, None where all may. RequestError when its constraint can not be compiled."""
        if request.constraint is not None:
            return self._of_artifact().matching(request, self._rows)
        if not request.min_tokens:
            return None
        manifest = self._artifact.manifest
        ends = (*request.stop_token_ids, *(() if request.ignore_eos else manifest.eos_token_ids))
        return Unended(request.min_tokens, vocabulary=manifest.vocabulary, end_ids=ends, rows=self._rows)

    def fill(self, answers: Sequence[tuple[Allowed, Sequence[int]]]) -> Future[None]:
        """Begin to find out what may come next, and after each draft, while the model computes what it makes of the same tokens."""
        if self._masks is None:
            from tsrun.matching import Masks

            self._masks = Masks()
        return self._masks.fill(answers)

    def close(self) -> None:
        """End thread and process. May be called again."""
        if self._masks is not None:
            self._masks.close()
        with self._making:
            if self._grammars is not None:
                self._grammars.close()

    def _of_artifact(self) -> Grammars:
        with self._making:
            if self._grammars is None:
                if self._tokenizer is None:
                    raise RequestError("constraint", "the artifact has no tokenizer, so that no grammar can be held against its tokens")
                manifest = self._artifact.manifest
                if not manifest.eos_token_ids:
                    raise RequestError("constraint", "the model has no token that ends an answer", "leave it out")
                from tsrun.grammars import Grammars

                self._grammars = Grammars(self._artifact.path, self._tokenizer, manifest.vocabulary, manifest.eos_token_ids)
            return self._grammars

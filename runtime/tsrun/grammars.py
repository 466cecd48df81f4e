"""Compiles constraints for the tokens of one artifact: checked first where it can do no harm, then kept for whoever asks for the same."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from llguidance import LLMatcher

from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest
from tsrun.grammar_check import GrammarCheck
from tsrun.grammar_compiler import compiled, grammar_tokens
from tsrun.matching import Matching
from tsrun.tokenizer import Tokenizer

_MOST_KEPT = 128
_MOST_SHOWN = 300  # characters of what the library says
_UNSUPPORTED = re.compile(r"Unimplemented keys: (\[.*\])")


class Grammars:
    """May be asked from several threads: to compile one takes up to five seconds, and others go on meanwhile."""

    def __init__(self, artifact: Path, tokenizer: Tokenizer, vocabulary: int, eos_ids: Sequence[int]) -> None:
        self._vocabulary, self._eos_ids = vocabulary, eos_ids
        known = tokenizer.token_bytes()
        self._special = {known.of[index].decode() for index in known.special}
        self._tokens = grammar_tokens(tokenizer, vocabulary, eos_ids)
        self._check = GrammarCheck(artifact)
        self._checking = Lock()
        self._kept: OrderedDict[Constraint, LLMatcher | RequestError] = OrderedDict()
        self._keeping = Lock()

    def matching(self, request: GenerationRequest, rows: int = 1) -> Matching:
        """A new answer's place in its constraint. RequestError when it can not be compiled."""
        assert request.constraint is not None
        return Matching(
            self.compile(request.constraint).deep_copy(),
            vocabulary=self._vocabulary,
            ignored=self._eos_ids if request.ignore_eos else (),
            early=(*self._eos_ids, *request.stop_token_ids),
            min_tokens=request.min_tokens,
            rows=rows,
        )

    def compile(self, constraint: Constraint) -> LLMatcher:
        """What is copied for each answer. Of the same text it is the same, and so is the error."""
        found = self._look_up(constraint)
        if found is None:
            with self._checking:
                found = self._look_up(constraint) or self._compiled(constraint)
                with self._keeping:
                    self._kept[constraint] = found
                    if len(self._kept) > _MOST_KEPT:
                        self._kept.popitem(last=False)
        if isinstance(found, RequestError):
            raise RequestError(found.where, found.what, found.mend)
        return found

    def close(self) -> None:
        self._check.close()

    def _look_up(self, constraint: Constraint) -> LLMatcher | RequestError | None:
        with self._keeping:
            found = self._kept.get(constraint)
            if found is not None:
                self._kept.move_to_end(constraint)
            return found

    def _compiled(self, constraint: Constraint) -> LLMatcher | RequestError:
        if constraint.kind == "gbnf":
            try:
                return self._compiled(replace(constraint, kind="lark", text=self._check.lark(constraint.text)))
            except ValueError as error:
                return _refused(constraint, str(error))
        try:
            grammar = constraint.grammar(self._special)
        except RequestError as error:
            return error
        except (ValueError, TypeError, RecursionError) as error:  # what the library's JSON does not take: NaN, 1e999, halves of pairs
            return _refused(constraint, str(error))
        said = self._check.error(grammar)
        if said is None:
            matcher = compiled(self._tokens, grammar)
            if not matcher.is_error():
                return matcher
            said = matcher.get_error()
        return _refused(constraint, said)


def _refused(constraint: Constraint, said: str) -> RequestError:
    unsupported = _UNSUPPORTED.search(said)
    if unsupported is not None:
        names = ", ".join(f"`{name}`" for name in json.loads(unsupported[1]))
        return RequestError(constraint.kind, f"the keyword {names} is not supported", "leave it out")
    line = " ".join(said.split())
    return RequestError(constraint.kind, line if len(line) <= _MOST_SHOWN else line[:_MOST_SHOWN] + "...", "mend it")

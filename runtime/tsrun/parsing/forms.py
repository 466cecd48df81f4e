"""What a model is made to write: a form of an answer, in terms that a grammar library can be told (`tsrun.lark`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


class Unwritable(Exception):
    """The form has no words for what is asked; the message says for what."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A text for which tokenizers may have a special token; where one has it, the model has to write the token."""

    text: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text that matches a regular expression as a whole."""

    regex: str


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON value of a schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Free:
    """Any text in which none of these tags is spelled. It has no special tokens. begins: a regular expression of its first signs."""

    without: tuple[str, ...] = ()
    begins: str = ""


@dataclass(frozen=True, slots=True)
class Until:
    """Free text up to and with a tag. after: a tag that comes first; without: tags that the text does not spell."""

    tag: str
    after: str | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the request itself says that the answer must look like."""


@dataclass(frozen=True, slots=True)
class Series:
    """One after the other."""

    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """Any of them, at least one."""

    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """As often as the model likes."""

    form: Form
    least: int = 0  # or 1


@dataclass(frozen=True, slots=True)
class Maybe:
    """Once or not at all."""

    form: Form


Form: TypeAlias = str | Tag | Pattern | Json | Free | Until | Answer | Series | OneOf | Repeat | Maybe


def series(*forms: Form) -> Form:
    return Series(forms)


def one_of(*forms: Form) -> Form:
    return forms[0] if len(forms) == 1 else OneOf(forms)

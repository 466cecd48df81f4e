"""A form of an answer as a grammar in llguidance's Lark, for the tokens of a model.

In it special tokens stand by their ids; text has none of them, so that a tag which is one is spelled as text only by who means harm, and
then excluded. Tags that are plain text end what stands before them with a lazy rule, as soon as they are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import assert_never

from tsrun.parsing.forms import Answer, Form, Free, Json, Maybe, OneOf, Pattern, Repeat, Series, Tag, Until

WHITESPACE = r"[ \t\n\r]{0,32}"
"""Between JSON's signs: a bound, since small models would else write it for ever."""
ANSWER = "answer"
"""The grammar that stands for `Answer`."""


def lark_of(form: Form, special_id: Callable[[str], int | None]) -> str:
    """special_id: of a text that is a special token."""
    writer = _Writer(special_id)
    start = writer.expression(form)
    return "\n".join([f"start: {start}", *(f"{name}: {body}" for body, name in writer.rules.items()), ""])


def quoted(text: str) -> str:
    """A text in Lark. Its strings are JSON's, where what can not be printed is escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Writer:
    def __init__(self, special_id: Callable[[str], int | None]) -> None:
        self._special_id = special_id
        self.rules: dict[str, str] = {}  # names by what they stand for

    def expression(self, form: Form) -> str:
        """What stands within a rule."""
        match form:
            case str():
                return quoted(form) if form else ""
            case Tag(text):
                return self._tag(text)
            case Pattern(regex):
                return self._named("P", f"/{_slashes(regex)}/")
            case Json(schema):
                options = {"whitespace_pattern": WHITESPACE, "lenient": False}
                return self._named("json_", f"%json {json.dumps({**schema, 'x-guidance': options})}")
            case Free(without, begins):
                return self._free(without, begins)
            case Until():
                return self._until(form)
            case Answer():
                return f"@{ANSWER}"
            case Series(forms):
                return " ".join(found for each in forms if (found := self.expression(each)))
            case OneOf(forms):
                return self._named("any_", " | ".join(self.expression(each) or '""' for each in forms))
            case Repeat(each, least):
                return f"({self.expression(each)}){'+' if least else '*'}"
            case Maybe(each):
                return f"({self.expression(each)})?"
        assert_never(form)

    def _named(self, kind: str, body: str, options: str = "") -> str:
        name = self.rules.setdefault(body, f"{kind}{len(self.rules)}{options}")
        return name.removesuffix(options)

    def _tag(self, text: str) -> str:
        index = self._special_id(text)
        return quoted(text) if index is None else f"<[{index}]>"

    def _free(self, without: Iterable[str], begins: str = "") -> str:
        spelled = "|".join(_slashes(re.escape(tag)) for tag in without)
        text = f"/{begins}(?s:.*)/"
        return self._named("TEXT", f"{text} & ~/(?s:.*)({spelled})(?s:.*)/" if spelled else text)

    def _until(self, form: Until) -> str:
        before = f"{self._tag(form.after)} " if form.after else ""
        if self._special_id(form.tag) is not None:
            return f"{before}{self._free((form.tag, *form.without))} {self._tag(form.tag)}"
        text = f"{self._free(form.without)} {quoted(form.tag)}"
        if form.after and self._special_id(form.after) is None:
            return self._named("until_", f"{before}{text}", "[lazy]")
        return f"{before}{self._named('until_', text, '[lazy]')}"


def _slashes(regex: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"(?<!\\)/", r"\\/", regex)

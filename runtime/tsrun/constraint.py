"""What an answer must look like: a constraint of a request, and the grammar of llguidance that says the same."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, assert_never, get_args

from tsrun.errors import RequestError
from tsrun.lark import ANSWER, WHITESPACE, quoted

ConstraintKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "choice", "structural_tag", "tools"]
_MOST_CHARACTERS = 2**19


@dataclass(frozen=True, slots=True)
class Constraint:
    """The whole answer is of this form, up to where it ends.

    text: a JSON schema; nothing; a regular expression; a grammar in llguidance's Lark, or in GBNF (`root ::= ...`); a JSON list of texts,
    one of which is the answer; or `{"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}`, where text is free up to a
    trigger, also as XGrammar's format `triggered_tags`; or, of `tools`, a grammar in Lark that we have made of theirs.
    frame: a grammar in Lark of the whole, in which `@answer` is what kind and text say: where the model may think first, or call a tool
    instead.
    """

    kind: ConstraintKind
    text: str = ""
    frame: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise RequestError("constraint", f"got {self.kind!r}", f"give one of {', '.join(get_args(ConstraintKind))}")
        size = len(self.text) + len(self.frame)
        if size > _MOST_CHARACTERS:
            raise RequestError(self.kind, f"it has {size:,} characters", f"give at most {_MOST_CHARACTERS:,}")

    def grammar(self, special: Collection[str] = ()) -> str:
        """The same for llguidance; what the grammar's text means is checked when it is compiled. special: the tokens that no text has."""
        found = self._grammar(special)
        return _framed(self.frame, found) if self.frame else found

    def _grammar(self, special: Collection[str]) -> str:
        from llguidance import LLMatcher  # late: only who constrains needs it

        match self.kind:
            case "json_schema":
                return _of_schema(self.text)
            case "json_object":
                return _of_schema('{"type": "object"}')
            case "regex":
                return LLMatcher.grammar_from_regex(self.text)
            case "lark" | "tools":
                return LLMatcher.grammar_from_lark(self.text)
            case "gbnf":
                raise RequestError("gbnf", "it is not translated", "have `GrammarCheck.lark` translate it, which may be stopped")
            case "choice":
                return LLMatcher.grammar_from_lark(_of_choice(self.text))
            case "structural_tag":
                return _of_tags(self.text, special)
        assert_never(self.kind)


def _framed(frame: str, grammar: str) -> str:
    """Several grammars are a JSON list, of which the first may refer to the others by name."""
    is_list = grammar.lstrip().startswith("{")
    first, *others = json.loads(grammar)["grammars"] if is_list else [{"lark_grammar": grammar}]
    return json.dumps({"grammars": [{"lark_grammar": frame}, {**first, "name": ANSWER}, *others]})


def _of_schema(text: str) -> str:
    from llguidance import LLMatcher

    schema = _parsed("json_schema", text)
    if not isinstance(schema, (dict, bool)):
        raise RequestError("json_schema", "it is no object", "give a JSON schema")
    if schema is False:
        raise RequestError("json_schema", "nothing is of the schema `false`", "give another")
    options = {"whitespace_pattern": WHITESPACE, "lenient": False}
    return LLMatcher.grammar_from_json_schema("{}" if schema is True else text, overrides=options)  # type: ignore[arg-type]


def _of_choice(text: str) -> str:
    choices = _parsed("choice", text)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise RequestError("choice", "it is no list of texts", "give one text at least, as JSON")
    return "start: " + " | ".join(map(quoted, choices))


def _of_tags(text: str, special: Collection[str]) -> str:
    from llguidance import StructTag

    stated = _parsed("structural_tag", text)
    try:
        stated = _triggered(stated)
        triggers, tags = stated["triggers"], []
        for structure in stated["structures"]:
            begin, end = structure["begin"], structure.get("end", "")
            trigger = next(trigger for trigger in triggers if trigger and begin.startswith(trigger))
            tags.append(StructTag(trigger=trigger, begin=begin, grammar=structure["schema"], end=end))
        is_special = {tag.trigger in special for tag in tags}
        if len(is_special) > 1:
            raise RequestError("structural_tag", "some triggers are special tokens, others are text", "give triggers of one kind")
        return StructTag.to_grammar(tags, assume_special=is_special == {True})
    except StopIteration:
        raise RequestError("structural_tag", f"{begin!r} begins with none of the triggers", "give a trigger that it begins with") from None
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        what = f"it is none ({type(error).__name__}: {error})"
        raise RequestError("structural_tag", what, "give structures of begin, schema and end, and triggers") from None


def _triggered(stated: Any) -> Any:
    """Of XGrammar's formats the one that says the same as `structures` and `triggers`, in these words."""
    if "format" not in stated:
        return stated
    form = stated["format"]
    if form["type"] != "triggered_tags":
        raise RequestError("structural_tag", f"the format `{form['type']}` is not supported", "give `triggered_tags`")
    for name in ("at_least_one", "stop_after_first"):
        if form.get(name):
            raise RequestError("structural_tag", f"`{name}` is not supported", "leave it out")
    structures = []
    for tag in form["tags"]:
        content = tag["content"]
        if content["type"] != "json_schema":
            raise RequestError("structural_tag", f"the content `{content['type']}` is not supported", "give `json_schema`")
        structures.append({"begin": tag["begin"], "schema": content["json_schema"], "end": tag.get("end", "")})
    return {"structures": structures, "triggers": form["triggers"]}


def _parsed(kind: ConstraintKind, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(kind, f"it is not JSON ({error})", "give it as JSON") from None

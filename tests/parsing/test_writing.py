"""Calls that a grammar has a model write: of the schema, and read as what they are; in every format that says how, with special tokens
for its tags and without."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema import validate
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from tsrun.constraint import Constraint
from tsrun.lark import lark_of, quoted
from tsrun.parsing import CallArguments, CallBegin, CallEnd, Choice, Content, Part, Reasoning, Tool, Unwritable, named
from tsrun.parsing.choice import TOOL_FORMATS

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "days": {"$ref": "#/$defs/count"}, "exact": {"type": "boolean"}},
    "required": ["unit", "days"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
}
STRICT, LOOSE = Tool("weather", SCHEMA, strict=True), Tool("weather_of", {"type": "object"})
TOOLS = [STRICT, LOOSE]
XML = "<parameter=unit>\n{unit}\n</parameter>\n<parameter=days>\n{days}\n</parameter>\n"
WRITTEN = {  # as templates render a call
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{json}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{json}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>",
    "glm": "<tool_call>weather\n<arg_key>unit</arg_key>\n<arg_value>{unit}</arg_value>\n<arg_key>days</arg_key>\n<arg_value>{days}"
    "</arg_value>\n</tool_call>",
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
    "<|message|>{json}",
    "harmony alone": " to=functions.weather<|channel|>commentary<|message|>{json}",
    "hermes": '<tool_call>\n{{"name": "weather", "arguments": {json}}}\n</tool_call>',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{json}<|tool_call_end|>"
    "<|tool_calls_section_end|>",
    "llama3_json": '{{"name": "weather", "parameters": {json}}}',
    "llama3_json tagged": '<|python_tag|>{{"name": "weather", "parameters": {json}}}',
    "mistral": '[TOOL_CALLS][{{"name": "weather", "arguments": {json}}}]',
    "mistral new": "[TOOL_CALLS]weather[ARGS]{json}",
    "qwen3_coder": "<tool_call>\n<function=weather>\n" + XML + "</function>\n</tool_call>",
}
EOS = 256


class Model:
    """Tokens of bytes, and of some texts that are special."""

    def __init__(self, special: tuple[str, ...] = ()) -> None:
        self.special = {text: EOS + 1 + i for i, text in enumerate(special)}
        self.tokens = [bytes([i]) for i in range(EOS)] + [b"<eos>", *(text.encode() for text in special)]
        ids = [EOS, *self.special.values()]

        class Words(SimpleNamespace):
            def __call__(self, text: bytes) -> list[int]:
                return list(text)

        words = Words(eos_token_id=EOS, bos_token_id=None, tokens=self.tokens, special_token_ids=ids)
        self.known = LLTokenizer(TokenizerWrapper(words))

    def matcher(self, choice: Choice, tools: list[Tool], **more: Any) -> LLMatcher:
        return self.of_lark(lark_of(choice.form(tools, **more), self.special.get))

    def of_lark(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self.known, lark, log_level=0)
        assert not matcher.is_error(), f"{matcher.get_error()}\n{lark}"
        return matcher

    def ids(self, text: str) -> list[int]:
        parts = re.split("(" + "|".join(map(re.escape, self.special)) + ")", text) if self.special else [text]
        return [i for part in parts for i in ([self.special[part]] if part in self.special else part.encode())]

    def takes(self, matcher: LLMatcher, text: str) -> str:
        """What of a text it lets a model write."""
        ids = self.ids(text)
        return b"".join(self.tokens[i] for i in ids[: matcher.deep_copy().try_consume_tokens(ids)]).decode(errors="ignore")

    def walk(self, matcher: LLMatcher, rng: random.Random, prefix: str = "") -> str | None:
        """A text that it may write, at random, with few spaces; None where it got too long."""
        written = self.ids(prefix)
        assert matcher.consume_tokens(written)
        bits = np.zeros(len(self.tokens) // 32 + 1, dtype=np.uint32)
        while len(written) < 500:
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            if EOS in allowed:
                return b"".join(self.tokens[i] for i in written).decode()
            seen = [int(i) for i in allowed if self.tokens[i].strip() and (i >= 128 or self.tokens[i].isascii())]
            token = rng.choice(seen or [int(i) for i in allowed])
            assert matcher.consume_token(token)
            written.append(token)
        return None


def read(choice: Choice, text: str) -> list[Part]:
    parser = choice.parser(TOOLS)
    return [*parser.feed(text), *parser.finish()]


def calls_of(parts: list[Part]) -> list[tuple[str, Any]]:
    names = [part.name for part in parts if isinstance(part, CallBegin)]
    arguments = ["" for _ in names]
    for part in parts:
        if isinstance(part, CallArguments):
            arguments[part.index] += part.text
        assert not isinstance(part, CallEnd) or part.complete
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def text_of(parts: list[Part], kind: Any = Content) -> str:
    return "".join(part.text for part in parts if isinstance(part, kind))


def written(name: str, unit: str, days: object) -> str:
    return WRITTEN[name].format(unit=unit, days=days, json=json.dumps({"unit": unit, "days": days}))


def case(name: str, is_special: bool) -> tuple[Choice, Model]:
    choice = named(tools=name.split()[0])
    return choice, Model(choice.tags if is_special else ())


cases = pytest.mark.parametrize("name", WRITTEN)
tokens = pytest.mark.parametrize("is_special", [False, True], ids=["text", "special"])


def test_every_format_that_says_how_calls_are_written_is_here() -> None:
    assert {name.split()[0] for name in WRITTEN} == {name for name, form in TOOL_FORMATS.items() if form.writing is not None}


@cases
@tokens
def test_a_call_as_templates_render_it_may_be_written_if_it_is_of_the_schema(name: str, is_special: bool) -> None:
    choice, model = case(name, is_special)
    good = written(name, "F", 3)
    assert calls_of(read(choice, good)) == [("weather", {"unit": "F", "days": 3})]
    for must_call in (True, False):
        matcher = model.matcher(choice, TOOLS, must_call=must_call)
        assert model.takes(matcher, good) == good
        for unit, days, wrong in (("K", 3, "K"), ("F", 0, "0"), ("F", 12, "2"), ("F", "many", '"m'), ("F", None, "n")):
            bad = written(name, unit, days)
            taken = model.takes(matcher, bad)
            assert len(taken) < len(bad)
            assert wrong not in bad[len(taken) - 1 : len(taken)] or wrong == "2", (taken, bad)


@cases
@tokens
def test_what_may_be_written_is_read_as_a_call_of_the_schema(name: str, is_special: bool) -> None:
    choice, model = case(name, is_special)
    rng, num_read = random.Random(name), 0
    only = model.matcher(choice, [STRICT], must_call=True)
    beside_text = model.matcher(choice, [STRICT])
    good = written(name, "F", 3)
    begin = good[: good.index("weather")]
    text = "" if name.startswith(("llama3", "harmony")) else "Let me see. "
    for matcher, prefix in [(only, "")] * 12 + [(beside_text, text + begin)] * 12:
        found = model.walk(matcher.deep_copy(), rng, begin if name.startswith("harmony") else prefix)
        if found is None:
            continue
        parts = read(choice, found)
        assert text_of(parts) == (text.rstrip() if prefix else ""), found
        for tool, arguments in calls_of(parts):
            assert tool == "weather"
            validate(arguments, SCHEMA)
            num_read += 1
    assert num_read >= 12


@cases
@tokens
def test_text_is_free_up_to_a_call(name: str, is_special: bool) -> None:
    choice, model = case(name, is_special)
    matcher = model.matcher(choice, TOOLS)
    if name.startswith("harmony"):
        text = "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>final<|message|>It is < 3, {so}."
    else:
        text = "It is < 3, {so} [TOOL]: ｜ <tool\n"
    assert model.takes(matcher, text) == text
    assert not calls_of(read(choice, text))
    assert not model.takes(model.matcher(choice, TOOLS, must_call=True), "It is")


@cases
def test_a_tag_that_is_a_token_is_not_spelled_in_text(name: str) -> None:
    """It would be read as the token is."""
    choice, model = case(name, is_special=True)
    spelling = Model()
    good = written(name, "K", 3)
    tag = next(tag for tag in choice.tags if tag in good) if any(tag in good for tag in choice.tags) else None
    if tag is None:
        assert name == "llama3_json"
        return
    matcher = model.matcher(choice, TOOLS)
    assert matcher.try_consume_tokens(spelling.ids(tag)) < len(tag.encode())


@pytest.mark.parametrize("is_special", [False, True], ids=["text", "special"])
@pytest.mark.parametrize(("reasoning", "open", "close"), [("think", "<think>", "</think>"), ("magistral", "[THINK]", "[/THINK]")])
def test_reasoning_stands_before_what_is_asked(reasoning: str, open: str, close: str, is_special: bool) -> None:
    choice = named(tools="hermes", reasoning=reasoning)
    model = Model(choice.tags if is_special else ())
    own = Constraint("regex", "[a-z]+")

    def takes(form: Any, text: str) -> bool:
        frame = lark_of(form, model.special.get)
        matcher = model.of_lark(Constraint(own.kind, own.text, frame).grammar())
        return bool(matcher.consume_tokens(model.ids(text)) and matcher.is_accepting())

    outside, inside = choice.form(has_form=True), choice.form(has_form=True, starts_inside=True)
    for text in (f"{open}It is {{}} <b>\n{close}\n\nyes", f"{open}{close}yes", "yes"):
        assert takes(outside, text)
        assert text_of(read(choice, text)) == "yes"
    for text in (f"{open}It is{close}", f"{open}It is{close}NO", f"{open}It is", "It is", f"{open}a{close}b{open}"):
        assert not takes(outside, text)
    assert takes(inside, f"so.{close}\nyes")
    assert not takes(inside, "yes")
    strict = model.matcher(choice, TOOLS)
    bad = written("hermes", "K", 3)
    text = f"{open}Perhaps {{x" if is_special else f"{open}Perhaps {bad}"
    assert model.takes(strict, f"{text}{close}\nText.") == f"{text}{close}\nText."
    assert text_of(read(choice, f"{text}{close}\nText."), Reasoning) == text.removeprefix(open)
    assert model.takes(strict, f"{open}x{close}{bad}") != f"{open}x{close}{bad}"


@pytest.mark.parametrize(
    ("tools", "schema", "said"),
    [
        ("pythonic", SCHEMA, "how `pythonic` writes calls"),
        ("gemma4", SCHEMA, "`gemma4`"),
        ("qwen3_coder", {"properties": {"a": {"type": "string", "pattern": "x"}}}, "`pattern`"),
        ("qwen3_coder", {"properties": {"a": {"type": ["string", "integer"]}}}, "a text or something else"),
        ("glm", {"properties": {"a": {}}}, "a text or something else"),
        ("glm", {"properties": {}, "minProperties": 1}, "`minProperties`"),
        ("glm", {"required": ["a"]}, "the argument `a`"),
        ("hermes", {"type": "array"}, "no object"),
        ("kimi_k2", None, "the name 'two words'"),
    ],
)
def test_what_a_format_can_not_say_is_refused_by_name(tools: str, schema: dict[str, Any] | None, said: str) -> None:
    tool = Tool("two words", {}, strict=True) if schema is None else Tool("f", schema, strict=True)
    with pytest.raises(Unwritable, match=said):
        named(tools=tools).form([tool])


@pytest.mark.parametrize("name", ["glm", "qwen3_coder"])
def test_texts_between_tags_are_free_but_for_their_choices(name: str) -> None:
    schema = {"type": "object", "properties": {"s": {"type": "string"}, "e": {"enum": ["", "a/b", "</x"]}}, "required": ["s"]}
    choice, model = named(tools=name), Model()
    matcher = model.matcher(choice, [Tool("f", schema, strict=True)], must_call=True)
    xml: Callable[..., str] = {
        "glm": lambda s, e: (
            f"<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>{s}</arg_value>\n<arg_key>e</arg_key>\n<arg_value>{e}"
            "</arg_value>\n</tool_call>"
        ),
        "qwen3_coder": lambda s, e: (
            f"<tool_call>\n<function=f>\n<parameter=s>\n{s}\n</parameter>\n<parameter=e>\n{e}\n</parameter>\n</function>\n</tool_call>"
        ),
    }[name]
    for s, e in (('{"a": <b>\n\n/ é 😀', "a/b"), ("", ""), ("12", "</x")):
        text = xml(s, e)
        assert model.takes(matcher, text) == text
        assert calls_of(read_with(choice, schema, text)) == [("f", {"s": s, "e": e})]
    assert model.takes(matcher, xml("x", "other")) != xml("x", "other")


def read_with(choice: Choice, schema: dict[str, Any], text: str) -> list[Part]:
    parser = choice.parser([Tool("f", schema)])
    return [*parser.feed(text), *parser.finish()]


def test_any_text_can_be_quoted() -> None:
    model = Model()
    for text in ["", "\n", "a\x00b", "".join(map(chr, range(256))), '"\\/|&~<>', "é😀\u2028\ufeff", "\\u0041 \\x41 \\n"]:
        matcher = model.of_lark(f"start: {quoted(text)}")
        assert matcher.consume_tokens(list(text.encode())), repr(text)
        assert matcher.is_accepting()

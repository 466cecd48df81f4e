"""Prompts, also from templates that take less than the APIs offer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from tsrun.errors import RequestError
from tsrun.serve.conversation import Conversation
from tsrun.serve.rendering import render
from tsrun.tokenizer import Tokenizer

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
ALTERNATING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and loop.index0 %}{{ raise_exception('late') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>{% endfor %}"
)
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def tokenizer(folder: Path, template: str) -> Tokenizer:
    library = Library(models.WordLevel({"x": 0}, "x"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return Tokenizer(folder)


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (CHATML, said(("system", "s"), ("user", "u"), ("system", "t")), "<system>s</><user>u</><system>t</><assistant>"),
        (FIRST, said(("system", "s"), ("user", "u"), ("system", "t")), "<system>s</><user>u</><user>t</>"),
        (ALTERNATING, said(("system", "s"), ("user", "u")), "<user>s\n\nu</><assistant>"),
        (
            ALTERNATING,
            said(("user", "u"), ("user", "v"), ("assistant", "a"), ("user", "w")),
            "<user>u\n\nv</><assistant>a</><user>w</><assistant>",
        ),
        (CHATML, said(("user", "u"), ("assistant", "begun ")), "<user>u</><assistant>begun"),
    ],
)
def test_a_conversation_is_said_as_the_template_takes_it(tmp_path: Path, template: str, messages: list[dict[str, Any]], text: str) -> None:
    begun = messages[-1]["role"] == "assistant"
    assert render(tokenizer(tmp_path, template), Conversation(messages, continues=begun)) == text


def test_a_template_without_tools_is_told_of_them_in_words(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "\u00e9"}}}
    messages = [*said(("user", "u")), {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "r"}]
    text = render(tokenizer(tmp_path, CHATML), Conversation(messages, [TOOL]))
    assert text.startswith("<system># Tools")
    assert json.dumps(TOOL) in text
    assert text.endswith(
        '<assistant><tool_call>\n{"name": "f", "arguments": {"a": "\u00e9"}}\n</tool_call></>'
        "<user><tool_response>\nr\n</tool_response></><assistant>"
    )


def test_calls_reach_a_template_that_alternates(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        *said(("system", "s"), ("user", "u")),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r"},
    ]
    text = render(tokenizer(tmp_path, ALTERNATING), Conversation(messages, [TOOL]))
    assert text.count("<user>") == 2
    assert "<tool_call>" in text


def test_what_no_way_of_saying_helps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="never"):
        render(tokenizer(tmp_path, "{{ raise_exception('never') }}"), Conversation(said(("user", "u"))))

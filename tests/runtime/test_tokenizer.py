"""The tokenizer of an artifact: when a bos is added, and chat templates."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.toy import BOS, EOS, byte_tokenizer
from tokenizers import Tokenizer as Encoder
from tokenizers.processors import TemplateProcessing

from tsrun.chat_template import ChatTemplate, read_chat_template
from tsrun.errors import ArtifactError, InputError, RequestError
from tsrun.tokenizer import Tokenizer

HI = byte_tokenizer().encode("hi").ids

USER = [{"role": "user", "content": "hi"}]


def tokenizer(folder: Path, encoder: Encoder | None = None, **config: Any) -> Tokenizer:
    (encoder or byte_tokenizer()).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def with_processor() -> Encoder:
    encoder = byte_tokenizer()
    encoder.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
    return encoder


def test_a_bos_is_added_once_when_the_config_says_so(tmp_path: Path) -> None:
    plain = tokenizer(tmp_path, add_bos_token=False, bos_token="<bos>").encode("a")
    assert tokenizer(tmp_path, add_bos_token=True, bos_token="<bos>").encode("a") == [BOS, *plain]
    assert tokenizer(tmp_path, with_processor(), add_bos_token=True, bos_token={"content": "<bos>"}).encode("a") == [BOS, *plain]
    assert tokenizer(tmp_path, with_processor(), add_bos_token=False).encode("a") == plain


def test_without_a_word_in_the_config_the_post_processor_decides(tmp_path: Path) -> None:
    ids = tokenizer(tmp_path, with_processor()).encode("a")
    assert (ids[0], ids[-1]) == (BOS, EOS)


@pytest.mark.parametrize(
    ("config", "template", "expected"),
    [
        ({"add_bos_token": False}, "$A <eos>", [*HI, EOS]),
        ({"add_bos_token": True}, "$A <eos>", [BOS, *HI, EOS]),
        ({"add_bos_token": True}, "<bos> $A", [BOS, *HI]),
        ({"add_bos_token": True, "add_eos_token": True}, None, [BOS, *HI, EOS]),
        ({"add_bos_token": False, "add_eos_token": True}, "$A <eos>", [*HI, EOS]),
        ({}, None, HI),
    ],
    ids=str,
)
def test_a_whole_text_has_all_that_the_tokenizer_puts_around_one(
    config: dict[str, bool], template: str | None, expected: list[int], tmp_path: Path
) -> None:
    """As embedding models have it; a prompt that goes on has no end."""
    encoder = byte_tokenizer()
    if template is not None:
        encoder.post_processor = TemplateProcessing(single=template, special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
    encoder.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>", **config}))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode_whole("hi") == expected
    assert config == {} or tokenizer.encode("hi")[-1] != EOS


def test_a_tokenizer_that_truncates_is_told_not_to(tmp_path: Path) -> None:
    encoder = byte_tokenizer()
    encoder.enable_truncation(4)
    encoder.enable_padding(length=64)
    assert len(tokenizer(tmp_path, encoder).encode("abcdefgh")) == 8


def test_a_bos_that_is_not_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json: add_bos_token is true, but bos_token"):
        tokenizer(tmp_path, add_bos_token=True, bos_token="<s>").encode("a")


def test_special_tokens_have_no_text(tmp_path: Path) -> None:
    loaded = tokenizer(tmp_path)
    assert loaded.decode([BOS, *loaded.encode("ab"), EOS]) == "ab"


def test_a_conversation_has_the_bos_that_its_template_writes_and_no_other(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    loaded = tokenizer(tmp_path, with_processor(), add_bos_token=True, bos_token="<bos>", chat_template=template)
    assert loaded.encode_chat(USER) == [BOS, *tokenizer(tmp_path, add_bos_token=False).encode("hi")]


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    assert tokenizer(tmp_path, chat_template=named).render_chat(USER) == "y"


def test_a_template_of_the_operator_stands_before_the_checkpoints(tmp_path: Path) -> None:
    tokenizer(tmp_path, chat_template="x")
    assert Tokenizer(tmp_path, "{{ messages[0].content }}!").render_chat(USER) == "hi!"


@pytest.mark.parametrize(
    ("source", "why"),
    [("", "is empty"), ("a\n{% if %}", "line 2"), ("{{ " + "1 + " * 20_000 + "1 }}", "too deeply"), (None, "can not be read")],
)
def test_a_template_that_can_not_be_used_is_refused(tmp_path: Path, source: str | None, why: str) -> None:
    file = tmp_path / "t.jinja"
    if source is not None:
        file.write_text(source)
    with pytest.raises(InputError, match=why) as caught:
        read_chat_template(file)
    assert caught.value.where == str(file)
    assert caught.value.mend


def test_a_checkpoint_without_a_template_says_so(tmp_path: Path) -> None:
    loaded = tokenizer(tmp_path)
    assert loaded.template_source is None
    with pytest.raises(RequestError, match="no chat template; give a prompt as it is"):
        loaded.encode_chat(USER)


def render(source: str, messages: list[dict[str, str]] | None = None) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages or USER)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}", "user\n"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ '<é>' | tojson }}", '"<é>"'),
        ("{{ {'b': 1} | tojson(indent=1) }}", '{\n "b": 1\n}'),
        ("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c", "abhic"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{% if tools is not none %}x{% endif %}{{ unknown }}", ""),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
    ],
)
def test_templates_find_what_they_expect(source: str, text: str) -> None:
    assert render(source) == text


def test_a_template_may_ask_for_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year), str(datetime.now().year - 1)}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "chat template: roles must alternate"),
        ("{{ messages.append(1) }}", "chat template: access to attribute 'append' of 'list' object is unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content / 2 }}", "chat template: unsupported operand"),
        ("a\n{% if %}", "chat template: line 2: "),
    ],
)
def test_what_a_template_must_not_do_is_one_line(source: str, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as caught:
        render(source)
    assert "\n" not in caught.value.line


def test_a_tokenizer_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer.json: can not be read"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["\udcff\udcfe", "a\ud800"])
def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path, text: str) -> None:
    loaded = tokenizer(tmp_path, chat_template="{{ messages[0]['content'] }}")
    said = r"^prompt: is not UTF-8 at character [01]; give a text that is$"
    with pytest.raises(RequestError, match=said):
        loaded.encode(text)
    with pytest.raises(RequestError, match=said):
        loaded.encode_chat([{"role": "user", "content": text}])

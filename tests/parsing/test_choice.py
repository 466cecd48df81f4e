"""The parsers of a model: by name, or from what its checkpoint says."""

from __future__ import annotations

import pytest
from tests.test_layering import imports, modules

from tsrun.errors import UsageError
from tsrun.parsing import REASONING_FORMATS, TOOL_FORMATS, Choice, choose, named

HERMES = '{{ \'<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>\' }}'
THINK = "{%- if '</think>' in content %}{{ '<think>\\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "model_type", "tools", "reasoning"),
    [
        (HERMES, "qwen2", "hermes", None),
        (HERMES + THINK, "qwen3", "hermes", "think"),
        (HERMES + "<function=example_function_name>\n<parameter=x>", "qwen3_moe", "qwen3_coder", None),
        (THINK + "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "glm4_moe", "glm", "think"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>" + THINK, "deepseek_v3", "deepseek", "think"),
        ("<|tool_calls_section_begin|><|tool_call_begin|>", "kimi_k2", "kimi_k2", None),
        ("[INST] {{ x }} [/INST][TOOL_CALLS]", "mistral", "mistral", None),
        ("[SYSTEM_PROMPT][THINK]x[/THINK][TOOL_CALLS]", "mistral", "mistral", "magistral"),
        ("<|start|>assistant<|channel|>final<|message|>", "gpt_oss", "harmony", "harmony"),
        ("<start_function_call>call:{{ name }}<escape>", "gemma3_text", "functiongemma", None),
        ("<|tool_call>call:{{ name }}", "gemma4", "gemma4", None),
        ("<start_of_turn>model\n", "gemma3_text", "gemma3", None),
        ("<|python_tag|>{{ call }}<|eom_id|>", "llama", "llama3_json", None),
        ('Respond with {"name": function name, "parameters": dictionary of argument name and its value}', "llama", "llama3_json", None),
        ("<|header_start|><|python_start|>", "llama4", "pythonic", None),
        ("You SHOULD put it in the format of [func_name1(params_name1=params_value1)]", "llama", "pythonic", None),
        ("<|im_start|>{{ message }}<|im_end|>", "llama", None, None),
        (None, "llama4", "pythonic", None),
        (None, None, None, None),
    ],
)
def test_marks_in_a_chat_template_choose(template: str | None, model_type: str | None, tools: str | None, reasoning: str | None) -> None:
    assert choose(template, model_type) == Choice(reasoning, tools)


def test_every_format_can_be_named() -> None:
    for tools in TOOL_FORMATS:
        assert named(tools=tools).tools == tools
    for reasoning in REASONING_FORMATS:
        assert named(reasoning=reasoning) == Choice(reasoning, None)


def test_harmony_is_both_parsers() -> None:
    assert (
        named(tools="harmony") == named(reasoning="harmony") == named(tools="harmony", reasoning="harmony") == Choice("harmony", "harmony")
    )
    with pytest.raises(UsageError, match=r"^--reasoning-parser: `harmony` is both"):
        named(tools="harmony", reasoning="think")
    with pytest.raises(UsageError, match=r"^--tool-parser: `harmony` is both"):
        named(tools="hermes", reasoning="harmony")


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"^--tool-parser: there is no parser `hermse`; take one of deepseek, .*hermes"):
        named(tools="hermse")
    with pytest.raises(UsageError, match=r"^--reasoning-parser: there is no parser `r1`; take one of harmony, magistral, think$"):
        named(reasoning="r1")


def test_tags_are_what_has_to_come_as_text() -> None:
    assert named(tools="mistral", reasoning="magistral").tags == ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    assert "<｜tool▁sep｜>" in named(tools="deepseek").tags
    assert named().tags == ()


def test_a_prompt_says_whether_the_answer_starts_within_reasoning() -> None:
    think = named(reasoning="think")
    assert think.starts_inside("<｜Assistant｜><think>\n")
    assert not think.starts_inside("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not named().starts_inside("<think>")


def test_the_parsers_know_nothing_of_the_engine() -> None:
    mine = [name for name in modules() if name.startswith("tsrun.parsing")]
    assert len(mine) > 10
    others = {other for name in mine for other in imports(name, at_run_time=False) if not other.startswith("tsrun.parsing")}
    assert others == {"tsrun.errors"}

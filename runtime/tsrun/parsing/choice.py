"""Which parsers a model's text needs: by name, or by the marks in its chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tsrun.errors import UsageError
from tsrun.parsing import deepseek, gemma, glm, harmony, hermes, kimi, llama3, mistral, pythonic, qwen3_coder
from tsrun.parsing.grammar import Grammar, Tools, plain
from tsrun.parsing.parser import Parser
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.thinking import think

HARMONY = "harmony"
"""Reasoning and calls in one: the name of both parsers."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes calls. `tags`: what has to be seen as text, though tokenizers have special tokens for it."""

    grammar: Callable[[Tools], Grammar]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning between two tags at the start of an answer."""

    open: str
    close: str


TOOL_FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "deepseek": ToolFormat(deepseek.deepseek, deepseek.TAGS),
        "functiongemma": ToolFormat(gemma.function_gemma, gemma.FUNCTION_GEMMA_TAGS),
        "gemma3": ToolFormat(pythonic.tool_code, ()),
        "gemma4": ToolFormat(gemma.gemma4, gemma.GEMMA4_TAGS),
        "glm": ToolFormat(glm.glm, glm.TAGS),
        HARMONY: ToolFormat(lambda tools: harmony.harmony, harmony.TAGS),
        "hermes": ToolFormat(hermes.hermes, hermes.TAGS),
        "kimi_k2": ToolFormat(kimi.kimi, kimi.TAGS),
        "llama3_json": ToolFormat(llama3.llama3, llama3.TAGS),
        "mistral": ToolFormat(mistral.mistral, mistral.TAGS),
        "pythonic": ToolFormat(pythonic.pythonic, pythonic.TAGS),
        "qwen3_coder": ToolFormat(qwen3_coder.qwen3_coder, qwen3_coder.TAGS),
    }
)
REASONING_FORMATS: Mapping[str, ReasoningFormat] = MappingProxyType(
    {
        "magistral": ReasoningFormat("[THINK]", "[/THINK]"),
        "think": ReasoningFormat("<think>", "</think>"),
    }
)
_TOOL_MARKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|channel|>", "<|message|>"), HARMONY),
    (("<｜tool▁calls▁begin｜>",), "deepseek"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<start_function_call>",), "functiongemma"),
    (("<|tool_call>",), "gemma4"),
    (("<tool_call>", "<arg_key>"), "glm"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>",), "hermes"),
    (("<|python_start|>",), "pythonic"),
    (("[func_name1(",), "pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (('"parameters": dictionary of argument name',), "llama3_json"),
)
"""The first row whose marks are all in the chat template decides."""
_TOOLS_OF_TYPE = MappingProxyType(
    {"gemma3": "gemma3", "gemma3_text": "gemma3", "gpt_oss": HARMONY, "kimi_k2": "kimi_k2", "llama4": "pythonic", "llama4_text": "pythonic"}
)
"""For templates without a mark: some render calls as the client sent them, and Gemma 3's has none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The parsers of a model, by name. None: its text has no reasoning, or no calls, that would be known."""

    reasoning: str | None
    tools: str | None

    @property
    def tags(self) -> tuple[str, ...]:
        """What has to come as text: detokenizing must not skip those of them that are special tokens."""
        between = REASONING_FORMATS.get(self.reasoning or "")
        calls = TOOL_FORMATS.get(self.tools or "")
        return (*((between.open, between.close) if between else ()), *(calls.tags if calls else ()))

    def starts_inside(self, prompt: str) -> bool:
        """Whether a rendered prompt ends with the tag that opens reasoning, so that the answer starts within it."""
        between = REASONING_FORMATS.get(self.reasoning or "")
        return between is not None and prompt.rstrip().endswith(between.open)

    def parser(self, tools: Tools | None = None, *, starts_inside: bool = False) -> Parser:
        """A parser of one answer. Without `tools` (None, not an empty list) calls are content; but harmony's are calls always."""
        calls = TOOL_FORMATS[self.tools].grammar(tools or ()) if self.tools and (tools is not None or self.tools == HARMONY) else plain
        between = REASONING_FORMATS.get(self.reasoning or "")
        if between is None:
            return Parser(calls)

        def grammar(reader: Reader, parts: Parts) -> Wait[None]:
            yield from think(reader, parts, between.open, between.close, starts_inside=starts_inside)
            yield from calls(reader, parts)

        return Parser(grammar)


def named(*, tools: str | None = None, reasoning: str | None = None) -> Choice:
    """The parsers of these names (`--tool-parser`, `--reasoning-parser`); raises UsageError for one that there is not."""
    for option, name, names in (("tool", tools, TOOL_FORMATS), ("reasoning", reasoning, (HARMONY, *REASONING_FORMATS))):
        if name is not None and name not in names:
            raise UsageError(f"--{option}-parser", f"there is no parser `{name}`", f"take one of {', '.join(sorted(names))}")
    if HARMONY in (tools, reasoning):
        if tools not in (None, HARMONY) or reasoning not in (None, HARMONY):
            other = "--reasoning-parser" if tools == HARMONY else "--tool-parser"
            raise UsageError(other, f"`{HARMONY}` is both parsers in one", "leave this one out")
        return Choice(HARMONY, HARMONY)
    return Choice(reasoning, tools)


def choose(chat_template: str | None, model_type: str | None = None) -> Choice:
    """The parsers for a checkpoint, by the marks in its chat template, then by the `model_type` of its config."""
    template = chat_template or ""
    tools = next((name for marks, name in _TOOL_MARKS if all(mark in template for mark in marks)), _TOOLS_OF_TYPE.get(model_type or ""))
    if tools == HARMONY:
        return Choice(HARMONY, HARMONY)
    return Choice(next((name for name, between in REASONING_FORMATS.items() if between.close in template), None), tools)

"""Which parsers a model's text needs: by name, or by the marks in its chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tsrun.errors import UsageError
from tsrun.parsing import deepseek, gemma, glm, harmony, hermes, kimi, llama3, mistral, pythonic, qwen3_coder
from tsrun.parsing.forms import Answer, Form, Maybe, Pattern, Until, Unwritable, series
from tsrun.parsing.grammar import Grammar, Tools, plain
from tsrun.parsing.parser import Parser
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.thinking import think
from tsrun.parsing.writing import Writing

HARMONY = "harmony"
"""Reasoning and calls in one: the name of both parsers."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes calls. `tags`: what has to be seen as text, though tokenizers have special tokens for it; `writing`:
    the same for models that are made to write so, None where that can not be said."""

    grammar: Callable[[Tools], Grammar]
    tags: tuple[str, ...]
    writing: Writing | None = None


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning between two tags at the start of an answer."""

    open: str
    close: str


TOOL_FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "deepseek": ToolFormat(deepseek.deepseek, deepseek.TAGS, deepseek.WRITING),
        "functiongemma": ToolFormat(gemma.function_gemma, gemma.FUNCTION_GEMMA_TAGS),
        "gemma3": ToolFormat(pythonic.tool_code, ()),
        "gemma4": ToolFormat(gemma.gemma4, gemma.GEMMA4_TAGS),
        "glm": ToolFormat(glm.glm, glm.TAGS, glm.WRITING),
        HARMONY: ToolFormat(lambda tools: harmony.harmony, harmony.TAGS, harmony.WRITING),
        "hermes": ToolFormat(hermes.hermes, hermes.TAGS, hermes.WRITING),
        "kimi_k2": ToolFormat(kimi.kimi, kimi.TAGS, kimi.WRITING),
        "llama3_json": ToolFormat(llama3.llama3, llama3.TAGS, llama3.WRITING),
        "mistral": ToolFormat(mistral.mistral, mistral.TAGS, mistral.WRITING),
        "pythonic": ToolFormat(pythonic.pythonic, pythonic.TAGS),
        "qwen3_coder": ToolFormat(qwen3_coder.qwen3_coder, qwen3_coder.TAGS, qwen3_coder.WRITING),
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

    def form(self, tools: Tools = (), *, must_call: bool = False, has_form: bool = False, starts_inside: bool = False) -> Form:
        """Of one answer, as `parser` reads it: what the model thinks, then calls of these tools, text, or (`has_form`) what the request
        itself says of it. must_call: one call, and nothing else. Raises Unwritable where the format has no words for it."""
        between = REASONING_FORMATS.get(self.reasoning or "")
        found = self._after_reasoning(tools, must_call, Answer() if has_form else None, () if between is None else (between.open,))
        if between is None:
            return found
        space = Maybe(Pattern("[ \\t\\r\\n]{1,8}"))
        if starts_inside:
            return series(Until(between.close), space, found)
        return series(Maybe(series(Until(between.close, after=between.open), space)), found)

    def _after_reasoning(self, tools: Tools, must_call: bool, content: Form | None, without: tuple[str, ...]) -> Form:
        calls = TOOL_FORMATS[self.tools].writing if self.tools and (tools or self.tools == HARMONY) else None
        if calls is None and tools:
            raise Unwritable(f"how `{self.tools}` writes calls" if self.tools else "how this model writes calls")
        if calls is None:
            assert content is not None, "nothing is asked of the answer"
            return content
        return calls.call(tools) if must_call else calls.answer(tools, content, without)


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

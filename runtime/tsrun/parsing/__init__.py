"""What a model's text means: reasoning and tool calls, read as the text arrives. Text only: it knows nothing of the engine."""

from tsrun.parsing.choice import REASONING_FORMATS, TOOL_FORMATS, Choice, choose, named
from tsrun.parsing.forms import Unwritable
from tsrun.parsing.grammar import Tool
from tsrun.parsing.parser import Parser
from tsrun.parsing.parts import CallArguments, CallBegin, CallEnd, Content, Part, Reasoning

__all__ = [
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Choice",
    "Content",
    "Parser",
    "Part",
    "Reasoning",
    "Tool",
    "Unwritable",
    "choose",
    "named",
]

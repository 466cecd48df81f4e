"""The fields by which a request offers tools, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tsrun.parsing import Tool as ParsedTool
from tsrun.serve.conversation import Conversation, Tool
from tsrun.serve.http_errors import invalid

ToolChoice = Literal["auto", "none", "required"]


def offered(tools: Sequence[Any] | None, tool_choice: Any) -> list[Tool]:
    """Those that are functions, unless none may be called. Other types, which run at their provider, are not offered to the model.
    HttpError where what must be called is not there."""
    choice, name = chosen(tool_choice)
    if choice == "none":
        return []
    found = [function_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or ()) if _is_function(tool, index)]
    if choice == "required" and not found:
        raise invalid("tool_choice", "tool_choice: a call is required, and there are no functions in `tools`")
    if name is not None and name not in [tool["function"]["name"] for tool in found]:
        raise invalid("tool_choice", f"tool_choice: there is no function '{name}' in `tools`")
    return found


def must_call(tools: Sequence[Tool], tool_choice: Any) -> frozenset[str]:
    """Of those that are offered the names of which one must be called; none where the model may answer otherwise."""
    choice, name = chosen(tool_choice)
    if choice != "required":
        return frozenset()
    return frozenset(tool["function"]["name"] for tool in tools) if name is None else frozenset({name})


def strict_names(tools: Sequence[Any] | None) -> frozenset[str]:
    """Of tools as a client sends them the names of those that are `strict`: in the function, or beside its name."""
    found: set[str] = set()
    for index, tool in enumerate(tools or ()):
        function = tool.get("function", {}) if isinstance(tool, dict) else None
        if isinstance(function, dict):
            fields = {**tool, **function}
            if not isinstance(fields.get("strict"), bool | None):
                raise invalid(f"tools[{index}]", f"tools[{index}]: `strict` is true or false")
            if fields.get("strict"):
                found.add(str(fields.get("name")))
    return frozenset(found)


def chosen(tool_choice: Any) -> tuple[ToolChoice, str | None]:
    """What the model may do, and the one function that it must call."""
    match tool_choice:
        case None | "auto":
            return "auto", None
        case "none" | "required":
            return tool_choice, None
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return "required", name
        case _:
            raise invalid("tool_choice", "tool_choice: give 'auto', 'none', 'required', or the function to call")


def _is_function(tool: Any, index: int) -> bool:
    if not isinstance(tool, dict) or not isinstance(tool.get("type", "function"), str):
        raise invalid(f"tools[{index}]", f"tools[{index}]: a tool is an object with a `type`")
    return bool(tool.get("type", "function") == "function")


def function_tool(tool: dict[str, Any], where: str) -> Tool:
    """In the form of chat completions; the responses API has the function's fields beside the type."""
    function = tool.get("function", {k: v for k, v in tool.items() if k not in ("type", "strict")})
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise invalid(where, f"{where}: a function has a `name`")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(where, f"{where}: `parameters` is a JSON schema")
    clean = {name: function[name] for name in ("name", "description") if function.get(name) is not None}
    return {"type": "function", "function": {**clean, "parameters": parameters or {"type": "object", "properties": {}}}}


def parsed_tools(conversation: Conversation) -> list[ParsedTool]:
    """For a parser, which reads the types of parameters, and for who has the model write calls: one that it must make is strict."""
    strict = conversation.strict | conversation.must_call
    functions = [tool["function"] for tool in conversation.tools]
    return [ParsedTool(each["name"], each["parameters"], each["name"] in strict) for each in functions]

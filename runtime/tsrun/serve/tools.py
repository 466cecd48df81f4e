"""The fields by which a request offers tools, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tsrun.constraint import Constraint
from tsrun.parsing import Tool as ParsedTool
from tsrun.serve.constraints import of_call
from tsrun.serve.conversation import Tool
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


def required_call(tools: Sequence[Tool], tool_choice: Any) -> Constraint | None:
    """What the answer must be where a call is required."""
    choice, name = chosen(tool_choice)
    return of_call(tools, name) if choice == "required" else None


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


def parsed_tools(tools: Sequence[Tool]) -> list[ParsedTool]:
    """For a parser, which reads the types of parameters."""
    return [ParsedTool(tool["function"]["name"], tool["function"]["parameters"]) for tool in tools]

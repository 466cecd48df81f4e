"""Functions that a client offers in groups, as Codex does those of its MCP servers: `{"type": "namespace", "name": …, "tools": […]}`.

Templates know single functions, so each is offered under a name made of both; a call of it is told to the client by its own two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsrun.serve.http_errors import invalid


def joined(namespace: str, name: str) -> str:
    """The name by which the model knows a function."""
    return f"{namespace.rstrip('_')}__{name}"


@dataclass(frozen=True, slots=True)
class Names:
    """Of functions in namespaces, by the name that the model knows."""

    of: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def fields(self, name: str) -> dict[str, str]:
        """Of a call."""
        namespace, own = self.of.get(name, (None, name))
        return {"name": own} if namespace is None else {"name": own, "namespace": namespace}


def ungrouped(tools: Sequence[Any]) -> tuple[list[Any], Names]:
    """Tools with each function of a group by itself, in the group's place, and what they are called. Raises HttpError 400."""
    found: list[Any] = []
    names: dict[str, tuple[str, str]] = {}
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "namespace":
            found.append(tool)
            continue
        where, namespace, group = f"tools[{index}]", tool.get("name"), tool.get("tools")
        if not isinstance(namespace, str) or not namespace or not isinstance(group, list):
            raise invalid(where, f"{where}: a namespace has a `name` and an array of `tools`")
        for place, one in enumerate(group):
            if not isinstance(one, dict) or not isinstance(one.get("name"), str) or not one["name"]:
                raise invalid(where, f"{where}.tools[{place}]: a tool is an object with a `name`")
            if one.get("type", "function") != "function":
                continue
            name = joined(namespace, one["name"])
            if name in names:
                raise invalid(where, f"{where}.tools[{place}]: `{name}` is there already; give the function or its namespace another name")
            names[name] = namespace, one["name"]
            found.append({**one, "name": name, "description": _description(tool, one)})
    for index, tool in enumerate(tools):
        if isinstance(tool, dict) and tool.get("type") != "namespace" and tool.get("name") in names:
            raise invalid(
                f"tools[{index}]", f"tools[{index}]: `{tool['name']}` is also what a function of a namespace is called here; rename it"
            )
    return found, Names(names)


def _description(group: dict[str, Any], tool: dict[str, Any]) -> str | None:
    """Of the group and of the function: what a group is for may be said nowhere else."""
    texts = [text for text in (group.get("description"), tool.get("description")) if isinstance(text, str) and text]
    return "\n\n".join(texts) or None

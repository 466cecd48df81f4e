"""Place a model: the search over every instance, callees first, and what is found where one cannot be placed."""

from __future__ import annotations

from tsc.diagnostics import CompileError, Diagnostic
from tsc.program import TypedModel
from tspasses.placed import Options, PlacedInstance, PlacedModel
from tspasses.placement_findings import explain, strict_violation
from tspasses.search import Search, Stuck


def place(typed: TypedModel, options: Options | None = None) -> PlacedModel:
    """Place every instance. Raises CompileError with all the modules' findings."""
    options = options or Options()
    placed: dict[str, PlacedInstance] = {}
    problems: list[Diagnostic] = []
    for name, instance in typed.instances.items():
        search = Search(typed, instance, options, is_entry=name == typed.entry)
        try:
            placed[name] = search.run()
        except Stuck as stuck:
            found: Diagnostic | None = explain(stuck)
        else:
            found = strict_violation(search, placed[name], lambda changed: _places(changed, options)) if instance.strict else None
        if found is not None and found not in problems:
            problems.append(found)
    if problems:
        raise CompileError(*problems)
    return PlacedModel(typed, options, placed)


def _places(typed: TypedModel, options: Options) -> bool:
    try:
        place(typed, options)
    except CompileError:
        return False
    return True

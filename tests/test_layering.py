"""Dependencies point one way, as docs/architecture.md has it: found by walking every import of the four packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"tsc": "tsc", "tspasses": "passes", "tskernels": "kernels", "tsrun": "runtime"}
DRIVERS = (
    *("cli", "cli_compile", "cli_options", "driver", "front", "machine_code", "plan_page", "report", "roof_report", "simulation", "tune"),
    *("tuning_table", "weights"),
)
"""The modules of tsc that may put passes together; the others are the language, its types and graphs, and what reads and writes files."""
OUTER = (*DRIVERS, "artifact", "checkpoint", "mesh_fixes", "request")
"""The modules of tsc that no pass may know."""
IN_FUNCTIONS = {
    ("tsc.checkpoint.config", "tsc.checkpoint.gguf_config"),
    ("tsc.checkpoint.tokenizer_gguf", "tsc.checkpoint.tokenizer_bytelevel"),
    ("tsc.checkpoint.tokenizer_gguf", "tsc.checkpoint.tokenizer_sentencepiece"),
}
"""Imports within a function that close a cycle: a module picks the reader, which uses what the module knows. No others are allowed."""
_FACTS = (
    *(
        "cache_layouts",
        "cache_pages",
        "cost",
        "dtypes",
        "equation",
        "expansion",
        "floats4",
        "layouts",
        "library",
        "measure",
        "registry",
        "roofline",
        "samples",
        "target",
        "tuning",
    ),
    *("waiting", "gpu.compile", "gpu.functions", "gpu.launch", "gpu.plan_json", "gpu.records", "jax.types"),
)
KERNEL_FACTS = tuple(f"tskernels.{name}" for name in _FACTS)
"""What the compiler may know of kernels."""


@cache
def modules() -> dict[str, Path]:
    """Every module by its name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, *, at_run_time: bool) -> set[str]:
    """The modules of the four packages that a module imports anywhere in it; at run time: not for type checkers alone."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_run_time):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                joined = f"{base}.{alias.name}"
                found.add(joined if joined in modules() else base)
    return {n for n in found if n.split(".")[0] in PACKAGES} - {name}


def _nodes(tree: ast.AST, at_run_time: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        is_guard = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if not (is_guard and at_run_time):
            yield child
            yield from _nodes(child, at_run_time)


def offenders(package: str, forbidden: tuple[str, ...]) -> list[str]:
    """Imports of forbidden packages, as `module -> import`."""
    mine = [m for m in modules() if m.split(".")[0] == package]
    return [f"{m} -> {i}" for m in mine for i in sorted(imports(m, at_run_time=False)) if i.split(".")[0] in forbidden]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("tskernels", ("tsc", "tspasses", "tsrun")), ("tsrun", ("tsc", "tspasses")), ("tspasses", ("tsrun",)), ("tsc", ("tsrun",))],
)
def test_a_package_imports_only_what_is_below_it(package: str, forbidden: tuple[str, ...]) -> None:
    assert offenders(package, forbidden) == []


def test_passes_import_the_language_and_not_its_drivers() -> None:
    found = [o for o in offenders("tspasses", ("tsc",)) if o.split(" -> tsc.")[-1].split(".")[0] in OUTER]
    assert found == []


def test_only_drivers_import_passes() -> None:
    importers = {o.split(" -> ")[0].removeprefix("tsc.").partition(".")[0] for o in offenders("tsc", ("tspasses",))}
    assert importers <= set(DRIVERS)


def test_the_compiler_knows_no_kernel_of_the_registry_by_name() -> None:
    found = [o for p in ("tsc", "tspasses") for o in offenders(p, ("tskernels",)) if o.split(" -> ")[1] not in KERNEL_FACTS]
    found = [o for o in found if not o.startswith("tsc.simulation.")]  # which runs what the compiler makes
    assert found == []


def test_the_front_of_the_compiler_needs_no_torch() -> None:
    """`tsc check` and `tsc plan` answer at once: nothing that they load imports torch, whatever they import later."""
    seen: set[str] = set()
    waiting = ["tsc.front", "tsc.report", "tspasses.place", "tspasses.plan"]
    while waiting:
        name = waiting.pop()
        if name in modules() and name not in seen:
            seen.add(name)
            tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
            loaded = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not [n for n in loaded if ast.unparse(n).split()[1].split(".")[0] == "torch"], f"{name} loads torch"
            waiting.extend(
                m for n in loaded for m in ([n.module] if isinstance(n, ast.ImportFrom) and n.module else [a.name for a in n.names])
            )


def test_no_modules_import_each_other() -> None:
    graph = {m: {i for i in imports(m, at_run_time=True) if (m, i) not in IN_FUNCTIONS} for m in modules()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle: {' <- '.join(error.args[1])}")
    assert set(modules()) <= set(order)


def test_the_walk_sees_the_imports() -> None:
    """Were the walk blind, every other test here would pass."""
    assert "tspasses.pipeline" in imports("tsc.driver", at_run_time=True)
    assert "tsc.mesh" in imports("tsc.types", at_run_time=False) - imports("tsc.types", at_run_time=True)
    assert {m.split(".")[0] for m in modules()} == set(PACKAGES)

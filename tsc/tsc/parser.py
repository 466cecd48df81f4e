"""Parses a model file: `parse(source)` gives the syntax tree of ast.py or raises CompileError."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc import ast
from tsc.diagnostics import CompileError, Diagnostic, near
from tsc.spans import Source, Span

if TYPE_CHECKING:
    from lark import Lark

GRAMMAR = Path(__file__).with_name("ts.lark")


@lru_cache(maxsize=64)  # who compares model files, or compiles several times, asks for the same texts again
def parse(source: Source) -> ast.ModelFile:
    """Parse one file; syntax errors and duplicate declarations raise CompileError (codes TS01xx)."""
    from lark.exceptions import UnexpectedInput

    from tsc.transform import to_model_file

    parser = grammar()
    try:
        tree: Any = parser.parse(source.text)
    except UnexpectedInput as error:
        from tsc.syntax_errors import explain_syntax_error

        raise CompileError(explain_syntax_error(source, parser, error)) from None
    model = to_model_file(tree, source)
    if not (model.architectures or model.config or model.axes or model.modules):
        fix = "start with `model ArchitectureName`, then `config { ... }`, `mesh { ... }`, modules and an entry"
        raise CompileError(Diagnostic("TS0114", "this file declares nothing", Span(source, 1, 1, 1, 2), fixes=(fix,)))
    return model


def parse_file(path: Path) -> ast.ModelFile:
    """Read and parse a file."""
    return parse(read_source(path))


def read_source(path: Path) -> Source:
    """Read a model file; one that cannot be read or is not UTF-8 raises CompileError."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        beside = [str(p) for p in path.parent.glob("*.ts")] if path.parent.is_dir() else []
        raise CompileError(Diagnostic("TS0115", f"cannot read `{path}`: {reason.lower()}{near(str(path), beside)}")) from None
    try:
        return Source(str(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"`{path}` is not UTF-8 text: line {line} holds the byte 0x{data[error.start]:02x}"
        raise CompileError(Diagnostic("TS0116", message, fixes=("save the file as UTF-8",))) from None


@cache
def grammar(strict: bool = False) -> Lark:
    """The parser, built on first use (0.1 s); strict refuses every conflict and needs `interegular`."""
    from lark import Lark

    return Lark(
        GRAMMAR.read_text(encoding="utf-8"),
        parser="lalr",
        lexer="contextual",
        propagate_positions=True,
        maybe_placeholders=False,
        strict=strict,
    )

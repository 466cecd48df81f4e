"""Reads calls with literal arguments from Python's syntax. Nothing is evaluated, and Python's parser sees only what is allowed here."""

from __future__ import annotations

import ast
import keyword
import re
from dataclasses import dataclass

from tsrun.parsing.json_text import MAX_DEPTH
from tsrun.parsing.parts import dump
from tsrun.parsing.reader import NAME_LIMIT, Malformed

_TOKEN = re.compile(
    r"""(?P<space>[^\S\n]+)|(?P<newline>\n)|(?P<string>\"""|'''|["'])|(?P<number>[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?(?![\w.]))"""
    r"""|(?P<name>[^\W\d][\w.]*)|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<sign>[-+])(?=[0-9])|(?P<mark>[,:=])"""
)
_STRING_PIECE = re.compile(r"""[^"'\\\r\n]+|\\?[\s\S]""")
_ESCAPED = frozenset("\n\\'\"abfnrtv0123xuUN")
_BREAKS = {"\n": "\\n", "\r": "\\r"}
_PAIRS = {")": "(", "]": "[", "}": "{"}
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Call:
    """A call; `arguments` is the JSON text of an object."""

    name: str
    arguments: str


def python_calls(text: str) -> list[Call]:
    """The calls of a text that is statements of nothing but calls, with keywords and literals alone; at least one.

    Malformed is everything else: operators, f-strings, comprehensions, positional arguments, depths over 64. JSON's words `true`, `false`
    and `null` are literals too, and line breaks and unknown escapes within strings are taken as they are.
    """
    try:
        module = ast.parse(_allowed(text))
        calls = [call for statement in module.body for call in _calls(statement)]
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Malformed from None
    if not calls:
        raise Malformed
    return calls


def _allowed(text: str) -> str:
    """The text, for Python's parser, once its tokens are such that its tree is no deeper than its brackets: values stand side by side
    nowhere, and a bracket follows no value but a name, and that one a round bracket."""
    pieces: list[str] = []
    opened: list[str] = []
    before = "mark"  # the kind of the token before; a line's start is like a comma
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or token.lastgroup is None:
            raise Malformed
        kind, piece, at = token.lastgroup, token.group(), token.end()
        after_value = before in ("string", "number", "name", "close")
        if kind == "open":
            if after_value and not (before == "name" and piece == "("):
                raise Malformed
            opened.append(piece)
            if len(opened) > MAX_DEPTH:
                raise Malformed
        elif kind == "close":
            if not opened or opened.pop() != _PAIRS[piece]:
                raise Malformed
        elif kind in ("string", "number", "name", "sign") and after_value:
            raise Malformed
        if kind == "name" and (len(piece) > NAME_LIMIT or (keyword.iskeyword(piece) and piece not in ("True", "False", "None"))):
            raise Malformed
        if kind == "string":
            piece, at = _string(text, at, piece)
        pieces.append(piece)
        if kind == "newline":
            before = before if opened else "mark"
        elif kind != "space":
            before = kind
    return "".join(pieces).strip()


def _string(text: str, at: int, quote: str) -> tuple[str, int]:
    """The string that began before `at`, as Python reads it without warnings, and where it ends."""
    pieces = [quote]
    while not text.startswith(quote, at):
        match = _STRING_PIECE.match(text, at)
        if match is None:
            raise Malformed
        piece, at = match.group(), match.end()
        if piece in _BREAKS and len(quote) == 1:
            piece = _BREAKS[piece]
        elif piece.startswith("\\") and piece[1:] not in _ESCAPED:
            piece = "\\" + piece
        pieces.append(piece)
    return "".join([*pieces, quote]), at + len(quote)


def _calls(statement: ast.stmt) -> list[Call]:
    if not isinstance(statement, ast.Expr):
        raise Malformed
    value = statement.value
    if isinstance(value, ast.Call) and _name(value.func) == "print" and len(value.args) == 1 and not value.keywords:
        value = value.args[0]
    return [_call(element) for element in (value.elts if isinstance(value, ast.List) else [value])]


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or not all(given.arg for given in node.keywords):
        raise Malformed
    return Call(_name(node.func), dump({str(given.arg): _literal(given.value) for given in node.keywords}))


def _name(node: ast.expr) -> str:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise Malformed
    return ".".join([node.id, *reversed(names)])


def _literal(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return -value if isinstance(sign, ast.USub) else value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [_literal(key) if key is not None else None for key in keys]
            if all(isinstance(name, str) for name in names):
                return {str(name): _literal(value) for name, value in zip(names, values, strict=True)}
    raise Malformed

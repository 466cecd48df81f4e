"""Prints a model file in its one style: `format_file(source)`, and expressions and types for messages.

Does not: change what a file says. parse(format_file(x)) equals parse(x), and every comment is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tsc import ast
from tsc.parser import parse
from tsc.spans import Source, Span

WIDTH = 120
STEP = 2

Position = tuple[int, int]

# --- expressions and types -----------------------------------------------------------------------------------------

BINDS = {"??": 1, "||": 2, "&&": 3, "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6, "**": 8}
UNARY, POSTFIX, ATOM = 7, 9, 10


def expr_text(expr: ast.Expr) -> str:
    """The expression on one line, with only the parentheses it needs."""
    return _expr(expr, 0, None)


def type_text(type_: ast.TensorType) -> str:
    """The type as the author writes it: `bf16[T, (K@kv, E) | sum tp]`."""
    dimensions = ", ".join(map(_dimension, type_.dimensions))
    partials = ""
    for before, partial in pairwise((None, *type_.partials)):
        assert partial is not None
        joins = before is not None and before.reduction == partial.reduction
        partials += f", {partial.axis}" if joins else f" | {partial.reduction} {partial.axis}"
    return f"{type_.dtype or ''}[{(dimensions + partials).lstrip()}]"


def _dimension(dimension: ast.Dimension) -> str:
    factors = [f"{f.name}@{f.axis}" if f.axis else str(f.name) for f in dimension.factors]
    return factors[0] if len(factors) == 1 else f"({', '.join(factors)})"


def _binds(expr: ast.Expr) -> int:
    match expr:
        case ast.Conditional():
            return 0
        case ast.Binary():
            return BINDS[expr.operator]
        case ast.Unary():
            return UNARY
        case ast.Attribute() | ast.Index() | ast.Call():
            return POSTFIX
    return ATOM


def _expr(expr: ast.Expr, least: int, indent: int | None) -> str:
    """Print, in parentheses when it binds looser than `least`; broken over lines from `indent` on unless that is None."""
    if _binds(expr) < least:
        return f"({_expr(expr, 0, indent)})"
    match expr:
        case ast.Name():
            return expr.text
        case ast.Constant():
            return _literal(expr)
        case ast.Unary():
            return expr.operator + _expr(expr.operand, UNARY, indent)
        case ast.Binary():
            binds = BINDS[expr.operator]
            left, right = {"**": (POSTFIX, UNARY)}.get(expr.operator, (binds + (binds == 4), binds + 1))
            gap = " " if indent is None else "\n" + " " * (indent + STEP)
            inner = None if indent is None else indent + STEP
            first = _expr(expr.left, left, indent if _binds(expr.left) == binds else None)
            return f"{first} {expr.operator}{gap}{_fit(expr.right, right, inner)}"
        case ast.Conditional():
            gap = " " if indent is None else "\n" + " " * (indent + STEP)
            inner = None if indent is None else indent + STEP
            then, otherwise = _fit(expr.then, 0, inner), _fit(expr.otherwise, 0, inner)
            return f"if {_expr(expr.condition, 0, None)}{gap}then {then}{gap}else {otherwise}"
        case ast.Attribute():
            return f"{_expr(expr.value, POSTFIX, indent)}.{expr.name}"
        case ast.Index():
            return f"{_expr(expr.value, POSTFIX, None)}[{_items([(None, i) for i in expr.indices], indent)}]"
        case ast.Call():
            prefix = "" if expr.prefix is None else f'<"{expr.prefix}">'
            arguments = _items([(a.name, a.value) for a in expr.arguments], indent)
            return f"{_expr(expr.function, POSTFIX, None)}{prefix}({arguments})"


def _items(items: Sequence[tuple[str | None, ast.Expr]], indent: int | None) -> str:
    if indent is None or not items:
        return ", ".join(f"{name} = {expr_text(value)}" if name else expr_text(value) for name, value in items)
    lines = []
    for name, value in items:
        lead = f"{name} = " if name else ""
        lines.append(f"\n{' ' * (indent + STEP)}{lead}{_fit(value, 0, indent + STEP, len(lead) + 1)},")
    return "".join(lines) + "\n" + " " * indent


def _fit(expr: ast.Expr, least: int, indent: int | None, taken: int = 0) -> str:
    """On one line when that fits after `indent` and `taken` more columns, else broken."""
    flat = _expr(expr, least, None)
    return flat if indent is None or indent + taken + len(flat) <= WIDTH else _expr(expr, least, indent)


def _literal(literal: ast.Constant) -> str:
    value = literal.value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, int):
        return str(value)
    written = literal.span.text()  # 1e-6 stays 1e-6
    if re.fullmatch(r"[0-9][0-9.eE+-]*", written) and _is(written, value):
        return written
    return re.sub(r"e([+-]?)0+(?=[0-9])", r"e\1", repr(value))


def _is(text: str, value: float) -> bool:
    try:
        return float(text) == value and not text.isdigit()
    except ValueError:
        return False


# --- lines: what the tree becomes before comments and columns ------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One logical line. Cells beyond the first are aligned with the neighbours'; start and end are places in the source."""

    indent: int
    cells: tuple[str, ...]
    start: Position
    end: Position
    opens: bool = False
    closes: bool = False

    def text(self, widths: Iterable[int] = ()) -> str:
        padded = [c.ljust(w) for c, w in zip(self.cells, widths, strict=False)]
        return " " * self.indent + " ".join((*padded, *self.cells[len(padded) :])).rstrip()


@dataclass(frozen=True)
class Comment:
    text: str
    at: Position
    own_line: bool


class _Lines:
    """Walks the tree in source order. Braces and comments come from the text, for the tree does not hold them."""

    def __init__(self, model: ast.ModelFile, text: str) -> None:
        self.lines: list[Line] = []
        self.comments: list[Comment] = []
        self.words: list[tuple[str, Position]] = []
        self.ends: dict[Position, Position] = {}
        self.scan(text)
        if model.architectures:
            start = self.word("model")
            end = max((at for w, at in self.words if w in model.architectures and self.before_body(at)), default=start)
            self.add(0, (f"model {', '.join(model.architectures)}",), start, end)
        if model.config or model.requirements or model.unused:
            lines = [((b.name, f"= {self.value(b.value, STEP, len(b.name) + 3)}"), b.span) for b in model.config]
            lines += [(("require", self.value(r.condition, STEP, len("require "))), r.span) for r in model.requirements]
            lines += [(("unused", f'"{u.pattern}"'), u.span) for u in model.unused]
            self.part("config", lines)
        if model.axes:
            self.part("mesh", [(_axis(a), a.span) for a in model.axes], short=True)
        for module in model.modules:
            self.module(module)

    def scan(self, text: str) -> None:
        opened: list[Position] = []
        line, line_start = 1, 0
        for match in re.finditer(r'"[^"\n]*"|//[^\n]*|[A-Za-z_][A-Za-z0-9_]*|[{}]|\n', text):
            token, at = match[0], (line, match.start() - line_start + 1)
            if token == "\n":
                line, line_start = line + 1, match.end()
            elif token.startswith("//"):
                self.comments.append(Comment(token.rstrip(), at, not text[line_start : match.start()].strip()))
            elif token == "{":
                opened.append(at)
                self.words.append((token, at))
            elif token == "}":
                self.ends[opened.pop()] = at
            elif not opened and not token.startswith('"'):
                self.words.append((token, at))

    def word(self, word: str, after: Position = (0, 0)) -> Position:
        return next((at for w, at in self.words if w == word and at >= after), after)

    def before_body(self, at: Position) -> bool:
        return not any(w in ("{", "module", "entry", "config", "mesh") and p <= at for w, p in self.words)

    def add(
        self, indent: int, cells: tuple[str, ...], start: Position, end: Position, *, opens: bool = False, closes: bool = False
    ) -> None:
        self.lines.append(Line(indent, cells, start, end, opens, closes))

    def commented(self, start: Position, end: Position) -> bool:
        return any(start <= c.at < end for c in self.comments)

    def value(self, expr: ast.Expr, indent: int, taken: int) -> str:
        return _fit(expr, 0, indent, taken)

    # --- declarations

    def part(self, word: str, items: Sequence[tuple[tuple[str, ...], Span]], short: bool = False) -> None:
        start = max((at for w, at in self.words if w == word and at < _start(items[0][1])), default=_start(items[0][1]))
        brace = self.word("{", start)
        end = self.ends.get(brace, _end(items[-1][1]))
        one = f"{word} {{ {' '.join(items[0][0])} }}"
        if short and len(items) == 1 and len(one) <= WIDTH and "\n" not in one and not self.commented(brace, end):
            self.add(0, (one,), start, end)
            return
        self.add(0, (f"{word} {{",), start, brace, opens=True)
        for cells, span in items:
            self.add(STEP, cells, _start(span), _end(span))
        self.add(0, ("}",), end, end, closes=True)

    def module(self, module: ast.Module) -> None:
        parameters = [f"{p.name}: {type_text(p.type)}" if p.type else p.name for p in module.parameters]
        head = f"{'entry' if module.is_entry else 'module'} {module.name}("
        tail = f") -> {type_text(module.result)}{' strict' if module.strict else ''} {{"
        text = head + ", ".join(parameters) + tail
        if len(text) > WIDTH:
            text = head + "".join(f"\n{' ' * STEP}{p}," for p in parameters) + "\n" + tail
        self.block(text, module.body, 0, module.span, _end(module.result.span))

    def block(self, head: str, body: tuple[ast.Statement, ...], indent: int, span: Span, after: Position) -> None:
        """A header that ends in `{`, the statements and the `}`."""
        brace, end = self.word("{", after), _end(span)
        if not body and not self.commented(brace, end):
            self.add(indent, (head + "}",), _start(span), end)
            return
        self.add(indent, (head,), _start(span), brace, opens=True)
        self.statements(body, indent + STEP)
        close = (end[0], end[1] - 1)
        self.add(indent, ("}",), close, close, closes=True)

    # --- statements

    def statements(self, body: tuple[ast.Statement, ...], indent: int) -> None:
        for statement in body:
            self.statement(statement, indent)

    def statement(self, statement: ast.Statement, indent: int) -> None:
        span = statement.span
        if isinstance(statement, ast.For | ast.If):
            one = _one_line(statement)
            head = statement.last if isinstance(statement, ast.For) else statement.condition
            if one and indent + len(one) <= WIDTH and not self.commented(self.word("{", _end(head.span)), _end(span)):
                self.add(indent, (one,), _start(span), _end(span))
            elif isinstance(statement, ast.For):
                self.block(_for_head(statement), statement.body, indent, span, _end(statement.last.span))
            else:
                self.if_(statement, indent, "", _start(span))
        else:
            self.add(indent, _cells(statement, indent), _start(span), _end(span))

    def if_(self, statement: ast.If, indent: int, lead: str, start: Position) -> None:
        brace = self.word("{", _end(statement.condition.span))
        close = self.ends.get(brace, brace)
        self.add(indent, (f"{lead}if {expr_text(statement.condition)} {{",), start, brace, opens=True, closes=bool(lead))
        self.statements(statement.then, indent + STEP)
        match statement.otherwise:
            case ():
                self.add(indent, ("}",), close, close, closes=True)
            case (ast.If() as inner,):
                self.if_(inner, indent, "} else ", close)
            case otherwise:
                self.add(indent, ("} else {",), close, self.word("{", close), opens=True, closes=True)
                self.statements(otherwise, indent + STEP)
                end = _end(statement.span)
                self.add(indent, ("}",), (end[0], end[1] - 1), end, closes=True)


def _start(span: Span) -> Position:
    return span.line, span.column


def _end(span: Span) -> Position:
    return span.end_line, span.end_column


def _axis(axis: ast.Axis) -> tuple[str, ...]:
    where = ", ".join(f"{b.name} = {expr_text(b.value)}" for b in axis.bindings)
    return (axis.name, f"= {' * '.join(axis.product)}{' where ' + where if where else ''}") if axis.product else (axis.name,)


def _for_head(loop: ast.For) -> str:
    return f"for {loop.variable} in {expr_text(loop.first)}..{expr_text(loop.last)} carry {', '.join(loop.carried)} {{"


def _one_line(statement: ast.For | ast.If) -> str | None:
    """The statement on one line, when each of its branches is one plain statement."""
    bodies = (statement.body,) if isinstance(statement, ast.For) else (statement.then, statement.otherwise)
    if any(len(body) > 1 or isinstance(s, ast.For | ast.If) for body in bodies for s in body):
        return None
    texts = [f"{{ {' '.join(_cells(body[0], None))} }}" if body else "{}" for body in bodies]
    if isinstance(statement, ast.For):
        return f"{_for_head(statement)[:-1]}{texts[0]}"
    return f"if {expr_text(statement.condition)} {texts[0]}{' else ' + texts[1] if statement.otherwise else ''}"


def _cells(statement: ast.Statement, indent: int | None) -> tuple[str, ...]:
    """A plain statement; weights and caches in cells that line up. Broken over lines where it must, unless indent is None."""
    match statement:
        case ast.Weight():
            start = f" from {expr_text(statement.start)}" if statement.start else ""
            tied = f" tied {statement.tied}" if statement.tied else ""
            when = f" when {expr_text(statement.condition)}" if statement.condition else ""
            return ("weight", f"{statement.name}:", type_text(statement.type), f'= "{statement.tensor}"{start}{tied}{when}')
        case ast.Cache():
            window = f" window {expr_text(statement.window)}" if statement.window else ""
            axis = f"@{statement.axis}" if statement.axis else ""
            return ("cache", f"{statement.name}:", f"{statement.kind}{axis} {type_text(statement.type)}{window}")
        case ast.Let():
            type_ = f": {type_text(statement.type)}" if statement.type else ""
            lead = f"let {', '.join(statement.names)}{type_} = "
            return (lead + _fit(statement.value, 0, indent, len(lead)),)
        case ast.Keep():
            lead = f"keep {statement.name}: {type_text(statement.type)} = "
            return (lead + _fit(statement.value, 0, indent, len(lead)),)
        case ast.Assign():
            return (f"{statement.name} = " + _fit(statement.value, 0, indent, len(statement.name) + 3),)
        case ast.Return():
            flat = f"return {', '.join(map(expr_text, statement.values))}"
            if indent is None or indent + len(flat) <= WIDTH:
                return (flat,)
            values = [_fit(v, 0, indent if len(statement.values) == 1 else indent + STEP, 8) for v in statement.values]
            return (f"return {f',{chr(10)}{chr(32) * (indent + STEP)}'.join(values)}",)
        case _:
            raise AssertionError(statement)


# --- comments, blank lines and columns -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Printable:
    """A line or an own-line comment, with the source lines it came from."""

    line: Line | None
    text: str
    first: int
    last: int
    trailing: str = ""
    blank_before: bool = False


def format_file(source: Source) -> str:
    """The file in the one style; what does not parse raises CompileError."""
    return _layout(_Lines(parse(source), source.text))


def file_text(model: ast.ModelFile) -> str:
    """A tree as text, without the comments of the file it came from."""
    return _layout(_Lines(model, ""))


def _layout(walked: _Lines) -> str:
    printables = _spaced(_with_comments(walked.lines, walked.comments))
    texts = _aligned(printables)
    columns = _comment_columns(printables, texts)
    out = []
    for printable, text, column in zip(printables, texts, columns, strict=True):
        last = text.rsplit("\n", 1)[-1]
        comment = " " * (column - len(last)) + printable.trailing if printable.trailing else ""
        out.append(("\n" if printable.blank_before else "") + text + comment + "\n")
    return "".join(out)


def _with_comments(lines: list[Line], comments: list[Comment]) -> list[Printable]:
    """Give each comment its line: trailing where it stood so, else before the line that follows; from inside a line, before it."""
    before: dict[int, list[Printable]] = {}
    trailing: dict[int, str] = {}
    for comment in comments:
        index = max((i for i, line in enumerate(lines) if line.start <= comment.at), default=-1)
        inside = index >= 0 and comment.at < lines[index].end
        if index >= 0 and not inside and not comment.own_line and lines[index].end[0] == comment.at[0] and index not in trailing:
            trailing[index] = comment.text
            continue
        target = index if inside else index + 1
        closer = target < len(lines) and lines[target].closes
        indent = 0 if target == len(lines) else lines[target].indent + STEP * closer
        at = lines[target].start[0] if inside else comment.at[0]
        before.setdefault(target, []).append(Printable(None, " " * indent + comment.text, at, at))
    out = []
    for index, line in enumerate(lines):
        out += [*before.get(index, []), Printable(line, "", line.start[0], line.end[0], trailing.get(index, ""))]
    return out + before.get(len(lines), [])


def _spaced(printables: list[Printable]) -> list[Printable]:
    """One blank line between top-level parts and where the author left some, none inside the braces' edges."""
    out = printables[:1]
    for before, after in pairwise(printables):
        blank = after.first > before.last + 1
        if (before.line and before.line.opens) or (after.line and after.line.closes):
            blank = False
        elif before.line and (after.line.indent == 0 if after.line else not after.text.startswith(" ")):
            blank = True
        out.append(replace(after, blank_before=blank))
    return out


def _aligned(printables: list[Printable]) -> list[str]:
    """Pad the cells of neighbouring lines to common widths, where the lines still fit."""
    texts = [p.line.text() if p.line else p.text for p in printables]
    run: list[int] = []
    for index, printable in enumerate([*printables, Printable(None, "", 0, 0, blank_before=True)]):
        line = printable.line
        joins = line is not None and (not line.opens and not line.closes) and "\n" not in texts[index]
        moves = bool(run) and line is not None and line.indent != _line(printables[run[0]]).indent
        if printable.blank_before or moves or (line is not None and not joins):
            _pad(printables, texts, run)
            run = []
        if joins and line is not None and len(line.cells) > 1:
            run.append(index)
        elif joins:
            _pad(printables, texts, run)
            run = []
    return texts


def _pad(printables: list[Printable], texts: list[str], run: list[int]) -> None:
    rows = [_line(printables[i]) for i in run]
    count = max((len(r.cells) for r in rows), default=0)
    widths = [max((len(r.cells[c]) for r in rows if len(r.cells) > c + 1), default=0) for c in range(count)]
    padded = [row.text(widths) for row in rows]
    if all(len(p) <= WIDTH for p in padded):
        for index, text in zip(run, padded, strict=True):
            texts[index] = text


def _line(printable: Printable) -> Line:
    assert printable.line is not None
    return printable.line


def _comment_columns(printables: list[Printable], texts: list[str]) -> list[int]:
    """Where each trailing comment starts: one column for a paragraph, two blanks after its longest commented line."""
    columns = [len(text.rsplit("\n", 1)[-1]) + 2 for text in texts]
    ends = list(columns)
    paragraph: list[int] = []
    for index, printable in enumerate(printables):
        paragraph = [] if printable.blank_before else paragraph
        if printable.trailing and printable.line and not printable.line.closes:
            paragraph = [*paragraph, index]
            for i in paragraph:
                columns[i] = max(ends[j] for j in paragraph)
    return columns

"""Says in words what is wrong where the parser stopped: one rule for each mistake people make, and a general sentence.

Rules look at what was found, what the parser would have accepted there, and the tokens before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tsc.diagnostics import Diagnostic, Note
from tsc.spans import Source, Span

BLOCKS = ("model", "config", "mesh")
KEYWORDS = ("weight", "cache", "let", "keep", "return", "for", "if", "module", "entry", *BLOCKS)
PAIRS = {")": "(", "]": "[", "}": "{"}
EXPRESSION = {"NAME", "INT", "FLOAT", "STRING", "(", "-", "!", "if", "true", "false", "none"}
OPERATORS = {"??", "||", "&&", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "**", ".", "(", "[", "PREFIX"}
STATEMENT = {"weight", "cache", "let", "keep", "return", "for", "if", "NAME"}
WORDS = {"NAME": "a name", "INT": "a number", "STRING": "a string in double quotes", "$END": "the end of the file"}

TYPESCRIPT = re.compile(
    r"^[ \t]*(import\b.*['\"{*]|export\b|interface\s+\w|declare\s|namespace\s+\w|(abstract\s+)?class\s+\w[^:(\n]*\{|(async\s+)?function\b"
    r"|const\s+[\w{\[]|var\s+[\w{\[]|enum\s+\w|type\s+\w+[^=\n]*=|['\"]use strict)",
    re.MULTILINE,
)
MODEL_FILE = re.compile(r"^(model\s+\w|config\s*\{|mesh\s*\{|module\s+\w+\s*\(|entry\s+\w)", re.MULTILINE)


@dataclass(frozen=True)
class Bracket:
    text: str
    span: Span
    indent: int


@dataclass(frozen=True)
class Place:
    """Where the parser stopped. `found` is a token's text, a character, or empty at the end of the file."""

    source: Source
    found: str
    kind: str
    span: Span
    accepts: frozenset[str]
    before: tuple[str, ...]
    previous_span: Span | None
    pending: str
    open: tuple[Bracket, ...]
    swallowed: Bracket | None

    @property
    def previous(self) -> str:
        return self.before[-1] if self.before else ""

    @property
    def outermost(self) -> bool:
        return "module" in self.accepts or not self.before

    @property
    def starts_line(self) -> bool:
        return _starts_line(self.span)

    def says(self, code: str, message: str, *fixes: str, label: str = "", notes: tuple[Note, ...] = ()) -> Diagnostic:
        return Diagnostic(code, message, self.span, label, notes, fixes)


def explain_syntax_error(source: Source, parser: Any, error: Any) -> Diagnostic:
    """Turn lark's exception for this source into a diagnostic."""
    place = _place(source, parser, error)
    for rule in RULES:
        diagnostic = rule(place)
        if diagnostic:
            return diagnostic
    return _unexpected(place)


# --- the mistakes people make


def _typescript(at: Place) -> Diagnostic | None:
    text = at.source.text
    match = TYPESCRIPT.search(text)
    if match and MODEL_FILE.search(text):  # a model file with a stray line of TypeScript
        match = TYPESCRIPT.match(at.source.line(at.span.line)) if at.outermost and at.starts_line else None
        line, column = at.span.line, at.span.column
    elif match:
        line, column = text.count("\n", 0, match.start(1)) + 1, match.start(1) - text.rfind("\n", 0, match.start(1))
    if not match:
        return None
    word = re.match(r"\W?\w+", match[1])
    span = Span(at.source, line, column, line, column + len(word[0] if word else match[1]))
    fix = "a tsc model file starts with `model Name`; give TypeScript to the TypeScript compiler, which is another `tsc`"
    return Diagnostic("TS0103", "this is TypeScript; tsc's `.ts` files describe language models", span, fixes=(fix,))


def _character(at: Place) -> Diagnostic | None:
    if at.found == "#" or ((at.found == "/" or at.previous == "/") and at.found in ("/", "*") and _begins(at, "/*")):
        return at.says("TS0123", "comments start with `//`", "write `// ...` on every line of the comment")
    if at.found in ("'", "`"):
        return at.says("TS0110", "strings stand in double quotes", 'write `"..."`')
    if at.found == ";":
        return at.says("TS0111", "statements end without `;`", "delete the `;`")
    if at.found == '"':
        span = Span(at.source, at.span.line, at.span.column, at.span.line, len(at.source.line(at.span.line)) + 1)
        message = "this string does not end on its line"
        return Diagnostic("TS0120", message, span, fixes=('close it with `"`; there are no escapes, and no `"` inside a string',))
    return None


def _unclosed(at: Place) -> Diagnostic | None:
    """Blames the opening bracket, at the end of the file or where the next statement or module begins inside it."""
    if not at.open:
        return None
    innermost = at.open[-1]
    ends = at.found == "" and at.kind == "$END"
    mismatched = at.found in PAIRS and PAIRS[at.found] != innermost.text
    next_line = at.starts_line and at.span.line > innermost.span.line and at.span.column <= innermost.indent
    statement = innermost.text != "{" and next_line and at.found.isidentifier()
    last = at.before[-2:]
    declaration = innermost.text == "{" and (
        at.found in ("module", "entry")
        or (last[-1] in ("module", "entry") and at.found.isidentifier())
        or (last[0] in ("module", "entry") and at.found == "(")
    )
    block = innermost.text == "{" and last[-1] in ("mesh", "config") and at.found == "{"
    if not (ends or mismatched or statement or declaration or block):
        return None
    blamed = at.swallowed if at.swallowed and not mismatched else innermost
    close = next(c for c, o in PAIRS.items() if o == blamed.text)
    found = "the file ends" if ends else "the next part begins" if declaration or block else f"`{at.found}` stands"
    note = Note(f"{found} before it is closed", None if ends else at.span)
    return Diagnostic("TS0109", f"this `{blamed.text}` is never closed", blamed.span, "opened here", (note,), (f"add the `{close}`",))


def _python(at: Place) -> Diagnostic | None:
    code = "TS0107"
    if (at.found in ("def", "class", "import", "from") and at.outermost) or (at.previous in ("def", "class") and at.kind == "NAME"):
        return at.says(code, "this is Python", "a module is written `module Name(x: [T, D]) -> [T, D] { ... }`")
    if at.found == ":" and "{" in at.accepts:
        return at.says(code, "a block stands in braces", "write `{ ... }` instead of `:` and an indented block")
    word = next((w for w in (at.found, at.previous) if w in ("and", "or", "not", "elif")), "")
    if word and at.kind == "NAME":
        instead = {"and": "&&", "or": "||", "not": "!", "elif": "else if"}[word]
        return at.says(code, f"`{word}` is written `{instead}`", f"write `{instead}`")
    if at.found == "else" and at.pending == "if" and "{" in at.accepts:
        return at.says(code, "the condition stands first", "write `if condition then a else b`")
    return None


def _result_type(at: Place) -> Diagnostic | None:
    if at.accepts != {"->"} and not (at.previous == "->" and at.found in ("{", "strict")):
        return None
    fix = f"say what it returns{', after `->`' * (at.found in ':=')}: `module Name(x: [T, D]) -> [T, D] {{ ... }}`"
    return at.says("TS0104", f"the result type is missing before {_found(at)}", fix)


def _type_after_colon(at: Place) -> Diagnostic | None:
    if at.found != "=" or ":" not in at.accepts or at.pending not in ("weight", "cache", "module", "entry"):
        return None
    fix = 'write `weight name: [F@tp, D] = "tensor.name"`' if at.pending == "weight" else "write `name: [T, D]`"
    return at.says("TS0105", "a type follows `:`, not `=`", fix)


def _tensor_name(at: Place) -> Diagnostic | None:
    if at.pending != "weight" or at.accepts not in ({"="}, {"STRING"}):
        return None
    fix = 'name it after the type: `weight name: [F@tp, D] = "q_proj.weight"`'
    return at.says("TS0106", f"a weight names its tensor in the checkpoint; found {_found(at)}", fix)


def _axis(at: Place) -> Diagnostic | None:
    if at.previous != "@":
        return None
    fix = "write the axis, as in `F@tp`, or delete the `@` for a factor that is whole on every rank"
    return at.says("TS0108", f"`@` is followed by the mesh axis that splits the factor; found {_found(at)}", fix)


def _carry(at: Place) -> Diagnostic | None:
    if "carry" not in at.accepts or at.found != "{":
        return None
    fix = "write `for i in 0..L carry x { x = ... }`"
    return at.says("TS0112", "a loop says which names it carries from one round to the next", fix)


def _shape(at: Place) -> Diagnostic | None:
    if at.found != "(" or "[" not in at.accepts or "STRING" in at.accepts:
        return None
    return at.says("TS0113", "a shape stands in `[ ]`", "write `[T, D]`; `( )` inside it groups the factors of one dimension")


def _order(at: Place) -> Diagnostic | None:
    if at.found not in BLOCKS or "entry" not in at.accepts:
        return None
    again = at.found in at.before[:1] or any(b == at.found and a in "}" for a, b in zip(at.before, at.before[1:], strict=False))
    fix = f"join the two `{at.found}` parts" if again else "order them as `model`, `config`, `mesh`, then modules and entries"
    message = f"a file has one `{at.found}` part" if again else f"`{at.found}` stands too late in the file"
    return at.says("TS0121", message, fix)


def _two_values(at: Place) -> Diagnostic | None:
    """`4 D`: the grammar takes the D for the next statement, and notices one word later."""
    name = at.previous_span
    if at.accepts != {"="} or name is None or _starts_line(name) or at.before[-2:-1] in [("{",), ("where",), (",",)]:
        return None
    message = f"found `{at.previous}` right after a value, expected an operator, or a new line for the next `name = value`"
    return Diagnostic("TS0101", message, name)


RULES: tuple[Callable[[Place], Diagnostic | None], ...] = (
    _typescript,
    _character,
    _unclosed,
    _python,
    _result_type,
    _type_after_colon,
    _tensor_name,
    _axis,
    _carry,
    _shape,
    _order,
    _two_values,
)


def _unexpected(at: Place) -> Diagnostic:
    if not at.kind:
        return at.says("TS0102", f"the character `{at.found}` means nothing here", notes=(Note(f"expected {_expected(at.accepts)}"),))
    if at.found in PAIRS and not at.open:
        return at.says("TS0101", f"nothing is open that this `{at.found}` could close", f"delete the `{at.found}`")
    if "NAME" in at.accepts and at.kind != "NAME" and at.found.isidentifier():
        return at.says("TS0101", f"`{at.found}` is a word of the language here, not a name", "choose another name")
    fixes = []
    if at.previous in ("const", "var"):
        fixes.append("write `let`")
    if at.found in (">", "<") and ">" not in at.accepts and "+" in at.accepts:
        fixes.append('comparisons do not chain; a module\'s prefix is a string: `Layer<"layers.{i}">(x)`')
    return at.says("TS0101", f"found {_found(at)}, expected {_expected(at.accepts)}", *fixes)


# --- words


def _begins(at: Place, text: str) -> bool:
    line, column = at.source.line(at.span.line), at.span.column - 1
    return line.startswith(text, column) or line.startswith(text, max(0, column - 1))


def _found(at: Place) -> str:
    if at.kind == "$END":
        return "the end of the file"
    what = {"INT": "the number ", "FLOAT": "the number ", "STRING": "the string "}.get(at.kind, "")
    return f"{what}`{at.found}`"


def _expected(accepts: Iterable[str]) -> str:
    """Name a set of terminals in words, the groups of the language first."""
    left = set(accepts)
    words = []
    for word, group, sign in (
        ("a statement", STATEMENT, {"let", "weight"}),
        ("an expression", EXPRESSION, {"INT", "STRING", "true"}),
        ("an operator", OPERATORS, {"+", "*"}),
    ):
        if sign <= left:
            words.append(word)
            left -= group
    words += [WORDS[w] for w in WORDS if w in left]
    words += [f"`{w}`" for w in sorted(left - WORDS.keys() - {"FLOAT", "PREFIX"})]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


# --- the parser's state


def _place(source: Source, parser: Any, error: Any) -> Place:
    from lark.exceptions import UnexpectedInput

    text_of = {t.name: t.pattern.value for t in parser.terminals if t.pattern.type == "str"}
    tokens: list[Any] = []
    try:
        for token in parser.parse_interactive(source.text).iter_parse():
            tokens.append(token)
    except UnexpectedInput:
        pass
    stopped = getattr(error, "token", None)
    if stopped is not None and tokens and tokens[-1].start_pos == stopped.start_pos and stopped.type != "$END":
        tokens.pop()  # the parser refused it; when the lexer did, it is not among them
    state = parser.parse_interactive("")
    for token in tokens:
        state.feed_token(token)
    if stopped is None:
        found, kind = source.text[error.pos_in_stream], ""
        span = Span(source, error.line, error.column, error.line, error.column + 1)
    elif stopped.type == "$END":
        last = tokens[-1]
        found, kind, span = "", "$END", Span(source, last.end_line, last.end_column, last.end_line, last.end_column + 1)
    else:
        found, kind = str(stopped), stopped.type
        span = _span(source, stopped)
    pending = (str(v) for v in reversed(state.parser_state.value_stack) if getattr(v, "type", "NAME") != "NAME")
    open_, swallowed = _brackets(source, tokens)
    return Place(
        source,
        found,
        kind,
        span,
        frozenset(text_of.get(name, name) for name in state.accepts()),
        tuple(map(str, tokens)),
        _span(source, tokens[-1]) if tokens else None,
        next((p for p in pending if p in KEYWORDS), ""),
        open_,
        swallowed,
    )


def _span(source: Source, token: Any) -> Span:
    return Span(source, token.line, token.column, token.end_line, token.end_column)


def _starts_line(span: Span) -> bool:
    return not span.source.line(span.line)[: span.column - 1].strip()


def _brackets(source: Source, tokens: list[Any]) -> tuple[tuple[Bracket, ...], Bracket | None]:
    """The brackets still open, and the first `{` closed by a `}` that by its indentation belongs to an outer one."""
    stack: list[Bracket] = []
    swallowed = None
    for token in tokens:
        if token in PAIRS.values():
            line = source.line(token.line)
            stack.append(Bracket(str(token), _span(source, token), len(line) - len(line.lstrip()) + 1))
        elif token in PAIRS:
            bracket = stack.pop()
            if token == "}" and _starts_line(_span(source, token)) and token.line > bracket.span.line and token.column < bracket.indent:
                swallowed = swallowed or bracket
    return tuple(stack), swallowed

"""The printer: what it prints parses to the same tree, printing again changes nothing, and no comment is lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsc import ast
from tsc.parser import parse
from tsc.printer import WIDTH, expr_text, file_text, format_file, type_text
from tsc.spans import Source, Span

T = TypeVar("T")

SYNTAX = Path(__file__).parent / "syntax"
FORMATTED = sorted(SYNTAX.glob("format_*.ts"))
AT = Span(Source("", ""), 1, 1, 1, 1)
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

# --- random trees

NAMES = ["x", "q_proj", "K", "E", "hidden_size", "a_rather_long_name_of_something_else"]
AXES = ["tp", "kv", "q", "ep"]
OPERATORS = ["+", "-", "*", "/", "%", "**", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "??"]

names = st.sampled_from(NAMES)
axis_names = st.sampled_from(AXES)
strings = st.text(st.characters(codec="utf-8", exclude_characters='"\n\r', exclude_categories=["Cs"]), max_size=12)
floats = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
values = st.one_of(st.integers(0, 2**63 - 1), floats, strings, st.booleans(), st.none())
few = st.integers(0, 3)


def some(draw: st.DrawFn, of: st.SearchStrategy[T], least: int = 0) -> tuple[T, ...]:
    return tuple(draw(of) for _ in range(max(least, draw(few))))


def unique(draw: st.DrawFn, of: st.SearchStrategy[str], least: int = 0) -> tuple[str, ...]:
    return tuple(dict.fromkeys(some(draw, of, least)))


@st.composite
def exprs(draw: st.DrawFn, depth: int = 3) -> ast.Expr:
    kind = draw(st.integers(0, 8)) if depth else draw(st.integers(0, 1))
    inner = exprs(depth - 1)
    match kind:
        case 0:
            return ast.Name(draw(names), span=AT)
        case 1:
            return ast.Constant(draw(values), span=AT)
        case 2:
            return ast.Unary(draw(st.sampled_from(["-", "!"])), draw(inner), span=AT)
        case 3 | 4:
            return ast.Binary(draw(st.sampled_from(OPERATORS)), draw(inner), draw(inner), span=AT)
        case 5:
            return ast.Conditional(draw(inner), draw(inner), draw(inner), span=AT)
        case 6:
            return ast.Attribute(draw(inner), draw(names), span=AT)
        case 7:
            return ast.Index(draw(inner), some(draw, inner, 1), span=AT)
    arguments = [ast.Argument(None, draw(inner), span=AT) for _ in range(draw(few))]
    arguments += [ast.Argument(n, draw(inner), span=AT) for n in unique(draw, names)]
    if draw(st.booleans()):
        return ast.Call(draw(inner), tuple(arguments), span=AT)
    return ast.Call(ast.Name(draw(names), span=AT), tuple(arguments), draw(st.text("abc.{}", max_size=5)), span=AT)


@st.composite
def types(draw: st.DrawFn) -> ast.TensorType:
    def dimension() -> ast.Dimension:
        axes = st.none() | axis_names
        of = names | st.integers(1, 64)
        return ast.Dimension(tuple(ast.FactorRef(draw(of), draw(axes), span=AT) for _ in range(draw(st.integers(1, 3)))), span=AT)

    partials = [ast.Partial(draw(st.sampled_from(["sum", "max"])), draw(axis_names), span=AT) for _ in range(draw(few))]
    dtype = draw(st.sampled_from([None, "bf16", "i32"]))
    return ast.TensorType(dtype, tuple(dimension() for _ in range(draw(few))), tuple(partials), span=AT)


@st.composite
def statements(draw: st.DrawFn, depth: int = 2) -> ast.Statement:
    kind = draw(st.integers(0, 5)) if depth else draw(st.integers(0, 3))
    value = exprs(2)
    match kind:
        case 0:
            return ast.Let(unique(draw, names, 1), draw(st.none() | types()), draw(value), span=AT)
        case 1:
            return ast.Assign(draw(names), draw(value), span=AT)
        case 2:
            return ast.Return(some(draw, value, 1), span=AT)
        case 3:
            return ast.Keep(draw(names), draw(types()), draw(value), span=AT)
        case 4:
            carried = unique(draw, names, 1)
            return ast.For(draw(names), draw(value), draw(value), carried, some(draw, statements(depth - 1)), span=AT)
    return ast.If(draw(value), some(draw, statements(depth - 1)), some(draw, statements(depth - 1)), span=AT)


@st.composite
def declarations(draw: st.DrawFn, name: str) -> ast.Weight | ast.Cache:
    if draw(st.booleans()):
        window = draw(st.none() | exprs(1))
        return ast.Cache(name, draw(st.sampled_from(["paged", "state"])), draw(types()), window, span=AT)
    tied = draw(st.none() | names)
    return ast.Weight(name, draw(types()), draw(strings), tied, draw(st.none() | exprs(1)) if tied else None, span=AT)


@st.composite
def files(draw: st.DrawFn) -> ast.ModelFile:
    def bindings(least: int = 0) -> tuple[ast.Binding, ...]:
        return tuple(ast.Binding(n, draw(exprs()), span=AT) for n in unique(draw, names, least))

    def axis(name: str) -> ast.Axis:
        product = some(draw, axis_names)
        return ast.Axis(name, product, bindings() if product else (), span=AT)

    declared = draw(st.permutations(NAMES))
    split = draw(st.integers(0, 5))
    parameters = tuple(ast.Parameter(n, draw(st.none() | types()), span=AT) for n in declared[:split])
    weights = [draw(declarations(n)) for n in declared[split:]]
    body = (*weights, *some(draw, statements()))
    module = ast.Module("M", parameters, draw(types()), body, draw(st.booleans()), draw(st.booleans()), span=AT)
    requirements = tuple(ast.Requirement(e, span=AT) for e in some(draw, exprs()))
    unused = tuple(ast.Unused("mtp.*", span=AT) for _ in range(draw(st.integers(0, 1))))
    return ast.ModelFile(
        ("Llama", "Qwen"), bindings(), requirements, unused, tuple(map(axis, unique(draw, axis_names))), (module,), span=AT
    )


def in_file(text: str) -> Source:
    return Source("random.ts", text)


@EXAMPLES
@given(exprs())
def test_an_expression_means_the_same_after_printing(expr: ast.Expr) -> None:
    (binding,) = parse(in_file(f"config {{ a = {expr_text(expr)} }}")).config
    assert repr(binding.value) == repr(expr)


@EXAMPLES
@given(files())
def test_a_tree_means_the_same_after_printing(model: ast.ModelFile) -> None:
    text = file_text(model)
    assert repr(parse(in_file(text))) == repr(model)
    formatted = format_file(in_file(text))
    assert repr(parse(in_file(formatted))) == repr(model)
    assert format_file(in_file(formatted)) == formatted


TOKEN = re.compile(
    r'<"[^"\n]*">|"[^"\n]*"|[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\w+|->|\.\.|\*\*|[=!<>]=|&&|\|\||\?\?|\S'
)
GAPS = st.sampled_from([" ", "  ", "\n", "\n\n\n", " // one\n", "\n// two\n", "\n\n    // three\n\n", " // four\n// five\n"])


@EXAMPLES
@given(files(), st.data())
def test_comments_and_blank_lines_anywhere_survive(model: ast.ModelFile, data: st.DataObject) -> None:
    tokens = TOKEN.findall(file_text(model))
    for _ in range(data.draw(st.integers(1, 6))):
        tokens.insert(data.draw(st.integers(0, len(tokens))), data.draw(GAPS))
    text = " ".join(tokens)
    formatted = format_file(in_file(text))
    assert repr(parse(in_file(formatted))) == repr(model)
    assert comments(formatted) == comments(text)
    assert format_file(in_file(formatted)) == formatted
    assert "\n\n\n" not in formatted
    assert not re.search(r"[ \t]$", formatted, re.MULTILINE)


def comments(text: str) -> list[str]:
    return sorted(m[1] for m in re.finditer(r'"[^"\n]*"|(//[^\n]*)', text) if m[1])


# --- the style


@pytest.mark.parametrize("path", FORMATTED, ids=lambda p: p.stem)
def test_a_file_is_printed_in_the_style(path: Path) -> None:
    source = Source(path.name, path.read_text(encoding="utf-8"))
    expected = path.with_suffix(".expected").read_text(encoding="utf-8")
    assert format_file(source) == expected
    assert format_file(in_file(expected)) == expected
    assert max(map(len, expected.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    "text",
    [
        "a + b * c",
        "(a + b) * c",
        "a - (b - c)",
        "-x ** 2",
        "(-x) ** 2",
        "2 ** -1",
        "a ** b ** c",
        "(a ** b) ** c",
        "!(a == b) && c",
        "(a ?? b) + 1",
        "(if a then b else c) + 1",
        "if a then b else if c then d else none",
        "rope_parameters.full_attention.rope_theta ?? 10000.0",
        'layer_types[i] == "full_attention"',
        "gcd(K, tp)",
        'Layer<"model.layers.{i}">(x, window = 1e-6)',
    ],
)
def test_an_expression_keeps_the_parentheses_it_needs(text: str) -> None:
    (binding,) = parse(in_file(f"config {{ a = ({text}) }}")).config
    assert expr_text(binding.value) == text


@pytest.mark.parametrize("text", ["[]", "bf16[T, D]", "[(K@kv, G@q, E), 2]", "[T, D | sum tp, ep | max q]", "[| sum tp]", "i32[T]"])
def test_a_type_is_printed_as_written(text: str) -> None:
    (module,) = parse(in_file(f"module M(x: {text}) -> [T] {{ return x }}")).modules
    (parameter,) = module.parameters
    assert parameter.type is not None
    assert type_text(parameter.type) == text

"""The parser: what each form becomes, and that every node's span covers exactly its text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsc import ast
from tsc.diagnostics import CompileError
from tsc.parser import grammar, parse, parse_file, read_source
from tsc.printer import expr_text, type_text
from tsc.spans import Source, Span

ROOT = Path(__file__).parents[2]
SYNTAX = Path(__file__).parent / "syntax"
FILES = [SYNTAX / "format_everything.ts", *sorted((ROOT / "models").glob("*.ts"))]


def parsed(text: str) -> ast.ModelFile:
    return parse(Source("test.ts", text))


def value(text: str) -> ast.Expr:
    (binding,) = parsed(f"config {{ a = {text} }}").config
    return binding.value


def body(text: str) -> tuple[ast.Statement, ...]:
    (module,) = parsed(f"module M(x: [T, D], window) -> [T, D] {{\n{text}\n}}").modules
    return module.body


def nodes(tree: object) -> Iterator[ast.Node]:
    if isinstance(tree, ast.Node):
        yield tree
        for field in dataclasses.fields(tree):
            yield from nodes(getattr(tree, field.name))
    elif isinstance(tree, tuple):
        for item in tree:
            yield from nodes(item)


def covered(span: Span) -> str:
    lines = span.source.text.split("\n")[span.line - 1 : span.end_line]
    lines[-1] = lines[-1][: span.end_column - 1]
    lines[0] = lines[0][span.column - 1 :]
    return "\n".join(lines)


def reparsed(node: ast.Node, text: str) -> object:
    """Parse a node's own text as what it is."""
    module = "module M() -> [T]"
    match node:
        case ast.ModelFile():
            return parsed(text)
        case ast.Module():
            return parsed(text).modules[0]
        case ast.Binding():
            return parsed(f"config {{ {text} }}").config[0]
        case ast.Requirement():
            return parsed(f"config {{ a = 1 {text} }}").requirements[0]
        case ast.Unused():
            return parsed(f"config {{ a = 1 {text} }}").unused[0]
        case ast.Axis():
            return parsed(f"mesh {{ {text} }}").axes[0]
        case ast.Parameter():
            return parsed(f"module M({text}) -> [T] {{}}").modules[0].parameters[0]
        case ast.TensorType():
            return parsed(f"module M() -> {text} {{}}").modules[0].result
        case ast.Dimension():
            return parsed(f"module M() -> [{text}] {{}}").modules[0].result.dimensions[0]
        case ast.FactorRef():
            return parsed(f"module M() -> [({text})] {{}}").modules[0].result.dimensions[0].factors[0]
        case ast.Partial():
            text = text if " " in text else f"{node.reduction} {text}"
            return parsed(f"module M() -> [| {text}] {{}}").modules[0].result.partials[0]
        case ast.Argument():
            call = value(f"f({text})")
            assert isinstance(call, ast.Call)
            return call.arguments[0]
        case ast.Weight() | ast.Cache() | ast.Let() | ast.Keep() | ast.Assign() | ast.Return() | ast.For() | ast.If():
            return parsed(f"{module} {{ {text} }}").modules[0].body[0]
    return value(text)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_span_covers_exactly_its_node(path: Path) -> None:
    model = parse_file(path)
    for node in nodes(model):
        text = covered(node.span)
        assert text == text.strip() or isinstance(node, ast.ModelFile)
        assert reparsed(node, text) == node


def test_a_parenthesised_operand_belongs_to_the_operation_around_it() -> None:
    outer = value("(b + c) * (d)")
    assert isinstance(outer, ast.Binary)
    assert covered(outer.span) == "(b + c) * (d)"
    assert covered(outer.left.span) == "b + c"
    assert covered(outer.right.span) == "d"


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("a + b * c - d", "((a + (b * c)) - d)"),
        ("a / b / c", "((a / b) / c)"),
        ("a ** b ** c", "(a ** (b ** c))"),
        ("-a ** -b", "(-(a ** (-b)))"),
        ("!a && b || c", "(((!a) && b) || c)"),
        ("a ?? b ?? c || d", "((a ?? b) ?? (c || d))"),
        ("a + 1 == b % 2", "((a + 1) == (b % 2))"),
    ],
)
def test_operators_bind_as_in_arithmetic(text: str, grouped: str) -> None:
    assert value(text) == value(grouped)


@pytest.mark.parametrize("text", ["a == b == c", "a < b > c", "a ?? ", "1.", ".5", "a b", "f(,)", "[a]", "1_000"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(CompileError):
        value(text)


def test_a_parameter_without_a_type_is_static() -> None:
    (module,) = parsed("module A(x: [T, D], positions: i32[T], window, theta) -> [T, D] { return x }").modules
    assert [(p.name, p.type and type_text(p.type)) for p in module.parameters] == [
        ("x", "[T, D]"),
        ("positions", "i32[T]"),
        ("window", None),
        ("theta", None),
    ]


def test_int_is_i32() -> None:
    (module,) = parsed("module A(x: int[T]) -> bf16[T] { return x }").modules
    assert (module.parameters[0].type and module.parameters[0].type.dtype, module.result.dtype) == ("i32", "bf16")


def test_literals_keep_their_types() -> None:
    (weight, *_) = body('let a = f(1, 1.0, 1e-6, "s", true, false, none)')
    assert isinstance(weight, ast.Let)
    assert isinstance(weight.value, ast.Call)
    values = [a.value.value for a in weight.value.arguments if isinstance(a.value, ast.Constant)]
    assert list(map(repr, values)) == ["1", "1.0", "1e-06", "'s'", "True", "False", "None"]


def test_a_weight_may_be_tied_under_a_condition() -> None:
    (weight,) = body('weight head: [V@tp, D] = "lm_head.weight" tied embed when tie_word_embeddings && !quantized')
    assert isinstance(weight, ast.Weight)
    assert (weight.tensor, weight.tied) == ("lm_head.weight", "embed")
    assert weight.condition is not None
    assert expr_text(weight.condition) == "tie_word_embeddings && !quantized"


def test_a_cache_may_have_a_window() -> None:
    plain, windowed = body("cache a: state [2, E] cache b: paged [2, K@kv, E] window window")
    assert isinstance(plain, ast.Cache)
    assert isinstance(windowed, ast.Cache)
    assert (plain.kind, plain.window) == ("state", None)
    assert (windowed.kind, windowed.window and expr_text(windowed.window)) == ("paged", "window")


def test_a_module_call_has_a_prefix() -> None:
    plain, prefixed = body('let a = Layer(x) let b = Layer<"model.layers.{i}">(x, theta = 3)')
    assert isinstance(plain, ast.Let)
    assert isinstance(prefixed, ast.Let)
    assert isinstance(plain.value, ast.Call)
    assert isinstance(prefixed.value, ast.Call)
    assert (plain.value.prefix, prefixed.value.prefix) == (None, "model.layers.{i}")
    assert [a.name for a in prefixed.value.arguments] == [None, "theta"]


def test_else_if_is_an_if_in_the_else() -> None:
    (chain,) = body("if a { return x } else if b { return y } else { return z }")
    (nested,) = body("if a { return x } else { if b { return y } else { return z } }")
    assert chain == nested


def test_one_statement_binds_several_names() -> None:
    pair, result = body("let a, b = f(x) return a, b")
    assert isinstance(pair, ast.Let)
    assert isinstance(result, ast.Return)
    assert (pair.names, len(result.values)) == (("a", "b"), 2)


def test_a_mesh_axis_is_a_product_where_its_parts_are_known() -> None:
    whole, product, defined = parsed("mesh { dp  ep = dp * tp  tp = kv * q where kv = gcd(K, tp), q = tp / kv }").axes
    assert (whole.product, product.product, defined.product) == ((), ("dp", "tp"), ("kv", "q"))
    assert [(b.name, expr_text(b.value)) for b in defined.bindings] == [("kv", "gcd(K, tp)"), ("q", "tp / kv")]


def test_partial_values_name_each_axis() -> None:
    (module,) = parsed("module A() -> [T | sum tp, ep | max q] {}").modules
    assert [(p.reduction, p.axis) for p in module.result.partials] == [("sum", "tp"), ("sum", "ep"), ("max", "q")]
    assert [covered(p.span) for p in module.result.partials] == ["sum tp", "ep", "max q"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (
            "entry A(x: [T, D,],) -> [(K, E,),] { return f(x, k = 1,), x[0,] }",
            "entry A(x: [T, D]) -> [(K, E)] { return f(x, k = 1), x[0] }",
        ),
        ("model A\n// comment\nconfig{a=1}//end", "model A config { a = 1 }"),
        ("config {\r\n  a = 1 // x\r\n  b = 2\r\n}\r\n", "config { a = 1 b = 2 }"),
    ],
)
def test_trailing_commas_comments_and_line_ends_mean_nothing(text: str, same: str) -> None:
    assert parsed(text) == parsed(same)


def test_keywords_are_names_where_no_keyword_can_stand() -> None:
    model = parsed(
        "model model config { config = sum window = paged model = x } mesh { carry }"
        "module then(weight, cache, sum: [T]) -> [in | sum tied] { let for = let(strict, when = tied) }"
    )
    assert model.modules[0].name == "then"
    assert [b.name for b in model.config] == ["config", "window", "model"]


# --- files


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "marked.ts"
    path.write_bytes(b"\xef\xbb\xbfmodel A\n")
    assert parse_file(path).architectures == ("A",)
    assert read_source(path).text == "model A\n"


def test_a_missing_file_offers_one_nearby(tmp_path: Path) -> None:
    (tmp_path / "llama.ts").write_text("model A\n")
    with pytest.raises(CompileError, match=r"TS0115.*no such file.*did you mean .*llama\.ts"):
        parse_file(tmp_path / "lama.ts")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="TS0115"):
        parse_file(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bytes.ts"
    path.write_bytes(b"model A\n// \xff\n")
    with pytest.raises(CompileError, match=r"TS0116.*line 2 holds the byte 0xff"):
        parse_file(path)


# --- the parser itself


def test_the_grammar_has_no_conflict() -> None:
    pytest.importorskip("interegular")
    assert grammar(strict=True).parse("model A").children


def test_importing_and_parsing_loads_no_heavy_package() -> None:
    script = (
        "import sys; from pathlib import Path; from tsc.parser import parse_file; parse_file(Path(sys.argv[1]));"
        "print(sorted({'torch', 'numpy', 'networkx', 'rich', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(FILES[0])]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "tsc")})
    assert result.stdout.strip() == "[]"


def test_long_and_deep_files_end_in_an_answer() -> None:
    parsed("config { a = " + "(" * 5000 + "1" + ")" * 5000 + " }")
    for deep in ("-" * 5000 + "1", "1" + " + 1" * 5000, "f(" * 5000 + ")" * 5000):
        with pytest.raises(CompileError, match="TS0119"):
            value(deep)

"""Static values: what config blocks, `if`s, `for`s and keyword arguments are made of.

Without a config every key is UNKNOWN, and so is what is computed from one: `tsc check MODEL.ts` then checks names, shapes and
placements with symbolic sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

from tsc import ast
from tsc.diagnostics import CompileError, Diagnostic, near


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = _Unknown()


@dataclass(frozen=True, slots=True)
class Missing:
    """A key that the config lacks: `??` replaces it, any other use is an error."""

    key: str


Static = Any
"""int, float, str, bool, None, list, dict, UNKNOWN or Missing: JSON's values and two of our own."""

LARGEST_BITS = 4096
"""Of a whole number's power: no size or constant of a model comes near it, and `9 ** 9 ** 9` would never end."""

FUNCTIONS: dict[str, Callable[..., Static]] = {"min": min, "max": max, "gcd": math.gcd, "len": len, "log": math.log}


def evaluate(expr: ast.Expr, names: Mapping[str, Static], config: Mapping[str, Any] | None) -> Static:
    """The value of a static expression; a Missing key becomes an error here. Raises CompileError."""
    value = _evaluate(expr, names, config)
    if isinstance(value, Missing):
        raise _missing(value, expr, config)
    return value


def _evaluate(expr: ast.Expr, names: Mapping[str, Static], config: Mapping[str, Any] | None) -> Static:
    def need(e: ast.Expr) -> Static:
        return evaluate(e, names, config)

    match expr:
        case ast.Constant():
            return expr.value
        case ast.Name():
            if expr.text in names:
                return names[expr.text]
            if config is None:
                return UNKNOWN
            return config.get(expr.text, Missing(expr.text))
        case ast.Attribute():
            base = _evaluate(expr.value, names, config)
            if base is UNKNOWN:
                return UNKNOWN
            key = ast_path(expr)
            return base.get(expr.name, Missing(key)) if isinstance(base, dict) else Missing(key)
        case ast.Index():
            base, indices = need(expr.value), [need(i) for i in expr.indices]
            if base is UNKNOWN or UNKNOWN in indices:
                return UNKNOWN
            try:
                return base[indices[0]]
            except (LookupError, TypeError) as error:
                raise _error("TS0210", f"`{_text(base)}` has no entry {_text(indices[0])}", expr) from error
        case ast.Conditional():
            condition = need(expr.condition)
            if condition is UNKNOWN:
                need(expr.then), need(expr.otherwise)
                return UNKNOWN
            return need(expr.then if condition else expr.otherwise)
        case ast.Unary():
            operand = need(expr.operand)
            if operand is UNKNOWN:
                return UNKNOWN
            return (not operand) if expr.operator == "!" else _arithmetic(expr, lambda: -operand)
        case ast.Binary():
            return _binary(expr, names, config)
        case ast.Call():
            if not isinstance(expr.function, ast.Name) or expr.function.text not in FUNCTIONS:
                raise _error("TS0206", "only min, max, gcd, len and log can be called on config values", expr)
            arguments = [need(a.value) for a in expr.arguments]
            if UNKNOWN in arguments:
                return UNKNOWN
            function = FUNCTIONS[expr.function.text]
            return _arithmetic(expr, lambda: function(*arguments))
        case _:
            assert_never(expr)


def _binary(expr: ast.Binary, names: Mapping[str, Static], config: Mapping[str, Any] | None) -> Static:
    if expr.operator == "??":
        left = _evaluate(expr.left, names, config)
        return _evaluate(expr.right, names, config) if left is None or isinstance(left, Missing) else left
    left = evaluate(expr.left, names, config)
    if expr.operator in ("&&", "||") and left is not UNKNOWN and bool(left) == (expr.operator == "||"):
        return left
    right = evaluate(expr.right, names, config)
    if left is UNKNOWN or right is UNKNOWN:
        return UNKNOWN

    def run() -> Static:
        match expr.operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                exact = isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0
                return left // right if exact else left / right
            case "%":
                return left % right
            case "**":
                if isinstance(left, int) and isinstance(right, int) and right * abs(left).bit_length() > LARGEST_BITS:
                    raise OverflowError("the number is too large")
                return left**right
            case "==":
                return left == right
            case "!=":
                return left != right
            case "<":
                return left < right
            case "<=":
                return left <= right
            case ">":
                return left > right
            case ">=":
                return left >= right
            case "&&" | "||":
                return right
            case "??":
                raise AssertionError("handled above")
            case _:
                assert_never(expr.operator)

    return _arithmetic(expr, run)


def _arithmetic(expr: ast.Expr, run: Callable[[], Static]) -> Static:
    try:
        return run()
    except (TypeError, ArithmeticError, ValueError) as error:
        raise _error("TS0210", f"this cannot be computed from the config: {error}", expr) from error


def ast_path(expr: ast.Expr) -> str:
    """`a.b.c` of an attribute chain."""
    if isinstance(expr, ast.Attribute):
        return f"{ast_path(expr.value)}.{expr.name}"
    return expr.text if isinstance(expr, ast.Name) else "?"


def _text(value: Static) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _missing(missing: Missing, expr: ast.Expr, config: Mapping[str, Any] | None) -> CompileError:
    return CompileError(
        Diagnostic(
            "TS0203",
            f"the config has no `{missing.key}`, and nothing in scope has that name{near(missing.key, config or ())}",
            expr.span,
            fixes=(f"give a default: `{missing.key} ?? VALUE`",),
        )
    )


def _error(code: str, message: str, expr: ast.Expr) -> CompileError:
    return CompileError(Diagnostic(code, message, expr.span))

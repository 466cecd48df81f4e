"""Random well-typed model files: a module of a few ops with random declared placements, and an entry around it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

CONFIG = {"d": 12, "f": 24, "v": 48}
OTHER = {"D": "F", "F": "D"}


@dataclass(frozen=True)
class RandomModel:
    """text: with `a` (and `b`) as axes; axes: their sizes; operations: of the module."""

    text: str
    axes: dict[str, int]
    operations: int


def _type(factors: list[str], places: dict[str, str]) -> str:
    """places: axis to a factor, `sum`, or nothing."""
    names = []
    for factor in factors:
        axes = [a for a, p in places.items() if p == factor]
        names.append(f"{factor}@{axes[0]}" if axes else factor)
    pending = [f"| sum {a}" for a, p in places.items() if p == "sum"]
    return f"[{', '.join(names)}{' ' + ' '.join(pending) if pending else ''}]"


@st.composite
def models(draw: st.DrawFn, most: int = 6) -> RandomModel:
    axes = {name: draw(st.sampled_from([2, 3, 4, 6])) for name in draw(st.sampled_from([["a"], ["a", "b"]]))}
    if len(axes) == 2:
        axes = {name: min(size, 3) for name, size in axes.items()}

    def places(options: list[str]) -> dict[str, str]:
        left = list(options)
        chosen: dict[str, str] = {}
        for axis in axes:
            place = draw(st.sampled_from(["", *left]))
            if place:
                chosen[axis] = place
                if place != "sum":
                    left.remove(place)  # one axis a factor
        return chosen

    weights: list[str] = []
    lines: list[str] = []
    values: list[tuple[str, str]] = [("x", "D")]  # name, width
    count = draw(st.integers(1, most))
    for index in range(count):
        name, width = draw(st.sampled_from(values))
        same = [n for n, w in values if w == width]
        kind = draw(st.sampled_from(["linear", "linear", "silu", "scale", "rms_norm", "add", "mul"]))
        made = f"y{index}"
        match kind:
            case "linear":
                out = OTHER[width]
                weights.append(f'weight w{index}: {_type([out, width], places([out, width]))} = "w{index}"')
                lines.append(f"let {made} = linear({name}, w{index})")
                width = out
            case "silu":
                lines.append(f"let {made} = silu({name})")
            case "scale":
                lines.append(f"let {made} = {name} * 0.5")
            case "rms_norm":
                weights.append(f'weight w{index}: [{width}] = "w{index}"')
                lines.append(f"let {made} = rms_norm({name}, w{index}, 0.01)")
            case _:
                lines.append(f"let {made} = {name} {'+' if kind == 'add' else '*'} {draw(st.sampled_from(same))}")
        values.append((made, width))
    result, width = values[-1]
    parameter, returned = _type(["T", "D"], places(["sum", "D"])), _type(["T", width], places(["sum", width]))
    body = "\n".join(f"  {line}" for line in [*weights, *lines, f"return {result}"])
    text = f"""model RandomForCausalLM
config {{ D = d  F = f  V = v }}
mesh {{ {" ".join(axes)} }}
module M(x: {parameter}) -> {returned} {{
{body}
}}
entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V] {{
  weight embed: [V, D] = "embed"
  weight head: [V, {width}] = "head"
  let y = M<"m">(embedding(ids, embed))
  return linear(y[last], head)
}}
"""
    return RandomModel(text, axes, count)

"""What an entry and a weight must be: each of these was accepted once, and failed later or computed something else."""

from __future__ import annotations

import pytest

from tsc.diagnostics import CompileError
from tsc.elaborate import drafter_of, elaborate
from tsc.front import model_for
from tsc.parser import parse
from tsc.spans import Source


def elaborated(result: str, body: str, config: str = "D = hidden_size  V = vocab_size") -> None:
    text = f"""config {{ {config} }}
entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> {result} {{
  weight embed: [V, D] = "embed"
  {body}
}}"""
    elaborate(parse(Source("model.ts", text)))


def test_an_entry_returns_a_row_of_logits_for_each_sequence() -> None:
    elaborated("[S, V]", "return linear(embedding(ids, embed)[last], embed)")
    for result, body in (("[T, V]", "return linear(embedding(ids, embed), embed)"), ("i32[T]", "return ids")):
        with pytest.raises(CompileError, match=r"TS0213.*each sequence's logits"):
            elaborated(result, body)


def test_an_entry_returns_an_embedding_of_each_sequence() -> None:
    elaborated("[S, D]", "return embedding(ids, embed)[last]")
    for result in ("f32[S, D]", "[S]", "[S, V, D]"):
        with pytest.raises(CompileError, match=r"TS0213.*its embedding, \[S, D\]"):
            elaborated(result, "return embedding(ids, embed)[last]")


def test_an_entry_is_chosen_by_its_name() -> None:
    file = model_for(["LlamaForCausalLM"]).file
    assert [elaborate(file, entry=name).entry for name in (None, "decode", "embed")] == ["decode", "decode", "embed"]
    for name in ("encode", "Layer"):
        with pytest.raises(CompileError, match=rf"TS0213.*--entry: there is no entry `{name}`; the file has `decode`, `embed`"):
            elaborate(file, entry=name)


def test_only_a_weight_can_be_tied_to() -> None:
    with pytest.raises(CompileError, match=r"TS0201.*is no weight"):
        elaborated("[S, V]", 'weight head: [V, D] = "head" tied ids return linear(embedding(ids, embed)[last], head)')


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(CompileError, match=r"TS0210.*too large"):
        elaborated("[S, V]", "return linear(embedding(ids, embed)[last] * 10 ** 1000, embed)")


def test_the_extents_of_a_step_are_no_names_for_the_config() -> None:
    with pytest.raises(CompileError, match=r"TS0210.*is taken"):
        elaborated("[S, V]", "return linear(embedding(ids, embed)[last], embed)", "D = hidden_size  V = vocab_size  T = 3")


def test_a_sum_can_be_indexed() -> None:
    elaborated("[S, V]", "return linear((embedding(ids, embed) + embedding(ids, embed))[last], embed)")


def test_a_power_that_would_never_end_is_refused() -> None:
    with pytest.raises(CompileError, match=r"TS0210.*too large"):
        elaborated("[S, V]", "return linear(embedding(ids, embed)[last], embed)", "D = hidden_size  V = vocab_size  huge = 9 ** 9 ** 9")


@pytest.mark.parametrize("rows", ["ids", "positions"])
def test_only_last_names_rows_of_a_step(rows: str) -> None:
    with pytest.raises(CompileError, match=r"TS0204.*by `last`, i32\[S\], got i32\[T\]"):
        elaborated("[S, V]", f"return linear((embedding(ids, embed)[{rows}])[last], embed)")


def drafting(
    kept: str, taken: str, *, keep: str = "keep made: {} = embedding(ids, embed)", module: str = "return x", again: str = ""
) -> None:
    text = f"""config {{ D = hidden_size  V = vocab_size }}
mesh {{ tp }}
module M(x: [T, D]) -> [T, D] {{ {module} }}
entry decode(ids: i32[T], positions: i32[T], last: i32[S]) -> [S, V] {{
  weight embed: [V, D] = "embed"
  {keep.format(kept)}
  return linear(made[last], embed)
}}
entry draft(ids: i32[T], last: i32[S], made: {taken}) -> [S, V] {{
  weight embed: [V, D] = "embed"
  {again}
  return linear((embedding(ids, embed) + made)[last], embed)
}}"""
    file = parse(Source("model.ts", text))
    sizes = {"hidden_size": 8, "vocab_size": 16}
    for entry in ("decode", "draft"):
        elaborate(file, sizes, {"tp": 2}, entry=entry)
    drafter = drafter_of(file, "decode")
    assert drafter is not None
    assert drafter.name == "draft"
    assert drafter_of(file, "draft") is None


def test_an_entry_takes_what_another_keeps() -> None:
    drafting("[T, D]", "[T, D]")
    drafting("[T, D@tp]", "[T, D@tp]")


def test_an_entry_keeps_what_it_takes_for_its_next_run() -> None:
    drafting("[T, D]", "[T, D]", again="keep made: [T, D] = embedding(ids, embed) + made")
    with pytest.raises(CompileError, match=r"TS0212.*`made` is taken as \[T, D\], and kept as \[T, D@tp\]"):
        drafting("[T, D]", "[T, D]", again="keep made: [T, D@tp] = embedding(ids, embed) + made")
    with pytest.raises(CompileError, match=r"TS0117.*kept twice"):
        drafting("[T, D]", "[T, D]", again="keep made: [T, D] = embedding(ids, embed) keep made: [T, D] = made")
    with pytest.raises(CompileError, match=r"TS0117.*kept twice"):
        drafting("[T, D]", "[T, D]", module="return x", again="", keep="keep made: {0} = embedding(ids, embed) keep made: {0} = made")


@pytest.mark.parametrize(
    ("kept", "taken", "keep", "said"),
    [
        ("[T, D]", "[T, D@tp]", None, r"TS0212.*`decode` keeps `made` as \[T, D\], and this takes it as \[T, D@tp\]"),
        ("[T, V]", "[T, V]", None, r"TS0212.*`made` is \[T, D\], and is kept as \[T, V\]"),
        ("[S, D]", "[S, D]", "keep made: {} = embedding(ids, embed)[last]", r"TS0204.*rows of the step's tokens"),
        ("[T, D]", "[T, D]", "if true {{ keep made: {} = embedding(ids, embed) }}", r"TS0205.*in no `if` or `for`"),
        ("[T, D]", "[T, D]", "keep ids: {} = embedding(ids, embed) let made = ids", r"TS0205.*what a step brings"),
        ("[T, D]", "[T, D]", "keep made: {0} = embedding(ids, embed) keep made: {0} = made", r"TS0117.*kept twice"),
        ("[T, D]", "[T, D]", "let made = embedding(ids, embed)", r"TS0205.*not `made: \[T, D\]`"),
    ],
)
def test_what_is_kept_is_taken_as_it_is(kept: str, taken: str, keep: str | None, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        drafting(kept, taken, **({} if keep is None else {"keep": keep}))


def test_only_an_entry_keeps() -> None:
    with pytest.raises(CompileError, match=r"TS0205.*`keep` stands in an entry"):
        drafting("[T, D]", "[T, D]", keep="keep made: {} = M(embedding(ids, embed))", module="keep y: [T, D] = x return y")

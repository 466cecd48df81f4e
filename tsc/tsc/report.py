"""Plans and kernel choices as text for a person."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tsc.diagnostics import CompileError, Diagnostic, near
from tspasses.alternatives import Alternative, alternatives
from tspasses.placed import PlacedModel
from tspasses.plan import Plan, PlanItem, plan_of
from tspasses.transitions import COLLECTIVES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tsc.simulation.simulate import Simulation
    from tskernels.registry import Call, Candidate, Kernel, Operand
    from tspasses.meshes import Arrangement
    from tspasses.plan_set import Bucket
    from tspasses.suggest import Suggestion


def plan_table(plan: Plan, placed: PlacedModel, drafts: PlacedModel | None) -> str:
    """One line a collective, then what a layer and a step come to; then the same of the drafter, if there is one."""
    mesh = _mesh(placed)
    names = ", ".join(placed.typed.architectures)
    lines = [f"plan for {names} on {mesh}, {plan.dtype}; {plan.tokens} tokens a step, links {plan.topology} (modelled)"]
    lines += _entry_lines(plan, placed, "", "a step")
    if plan.drafter is not None and drafts is not None:
        name = drafts.entry.instance.module
        lines += ["", f"drafter `{name}`, which runs after each step on its rows, where the checkpoint has its weights:"]
        lines += _entry_lines(plan.drafter, drafts, "drafter's ", "a run")
    return "\n".join(lines)


def _entry_lines(plan: Plan, placed: PlacedModel, whose: str, run: str) -> list[str]:
    lines = []
    if plan.items:
        rows = [("id", "module", "collective", "of", "bytes", "times", "predicted", "forced at", "why")]
        rows += [
            (
                i.id,
                i.module,
                f"{i.kind} {i.axis}",
                f"{i.before} -> {i.after}",
                _bytes(i),
                str(i.times),
                f"{i.seconds * 1e6:.1f} us",
                i.span,
                i.reason,
            )
            for i in plan.items
        ]
        widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += _totals(plan, run, placed.typed.entry)
    else:
        lines.append("no collectives")
    copies = f"; each byte is on {plan.cache_copies} ranks" if plan.cache_copies > 1 else ""
    if copies and len(placed.mesh.axes) > 1 and placed.mesh.joined:
        copies += " (--meshes: what fewer copies cost)"
    states = f", and states of {plan.state_bytes:,} bytes a sequence" if plan.state_bytes else ""
    lines.append(f"{whose}cache: {plan.cache_bytes_per_token:,} bytes a token on each rank{states}{copies}")
    repeated = f", {_gigabytes(plan.weight_bytes_repeated)} of them repeated on others" if plan.weight_bytes_repeated else ""
    lines.append(f"{whose}weights: {_gigabytes(plan.weight_bytes)} on each rank{repeated}")
    return lines


def bucket_table(buckets: Sequence[Bucket], largest: int) -> str:
    """A line for each range of step sizes that has a plan of its own: how often a step runs what, and its bytes."""
    rows: list[tuple[str, ...]] = [("tokens a step", "collectives a step", "bytes a token", "they take at the first", "a step")]
    for bucket in buckets:
        plan = plan_of(bucket.placed)
        items = plan.items
        counts = [(k, sum(i.times for i in items if i.kind == k)) for k in COLLECTIVES]
        span = f"{bucket.first} and more" if bucket.last == largest else f"{bucket.first} to {bucket.last}"
        rows.append(
            (
                span,
                ", ".join(f"{n} {k}" for k, n in counts if n) or "none",
                f"{plan.bytes_per_token:,}",
                *(f"{t * 1e6:,.0f} us" for t in (plan.seconds, plan.step_seconds)),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def arrangement_table(found: Sequence[Arrangement], placed: PlacedModel) -> str:
    """A line for each way to arrange the ranks: what a rank stores, and what a step's collectives cost."""
    rows: list[tuple[str, ...]] = [("mesh", "cache a token", "copies", "weights a rank", "bytes a token", "collectives", "a step")]
    for other in found:
        mesh = ",".join(f"{name}={size}" for name, size in other.sizes.items())
        if other.plan is None:
            rows.append((mesh, f"cannot be: {other.reason}", "", "", "", "", ""))
            continue
        plan = other.plan
        cache, weights = f"{plan.cache_bytes_per_token:,} B a rank", _gigabytes(plan.weight_bytes)
        times = [f"{s * 1e6:,.0f} us" for s in (plan.seconds, plan.step_seconds)]
        rows.append((mesh, cache, str(plan.cache_copies), weights, f"{plan.bytes_per_token:,}", *times))
    widths = [max(len(row[i]) for row in rows if "cannot be" not in row[1]) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    options = placed.options
    note = (
        f"predicted at {options.tokens} tokens a step, {options.topology.name} (modelled); what attention reads of the cache is not counted"
    )
    return "\n".join([*lines, note])


def suggestion_table(found: Sequence[Suggestion], placed: PlacedModel) -> str:
    """A line a suggestion, the one that saves most first."""
    at = f"at {placed.options.tokens} tokens a step"
    if not found:
        return f"no other boundary is cheaper {at}"
    rows = [("module", "of", "declared", "cheaper", "saves a step", "bytes a token", "at")]
    for s in found:
        change = f"{-s.bytes_per_token:+,}" if s.bytes_per_token else "0"
        rows.append((s.module, s.what, s.now, s.then, f"{s.seconds * 1e6:,.1f} us", change, str(s.span)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"each alone, {at}, links {placed.options.topology.name} (modelled)"])


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size:,} bytes"


def _mesh(placed: PlacedModel) -> str:
    """`tp=16 (kv=8 * q=2)`: the axes as they are given, and what they are made of."""
    made = {p: n for n, parts in placed.mesh.products.items() if n not in placed.mesh.joined for p in parts}
    texts = []
    for name in dict.fromkeys(made.get(a.name, a.name) for a in placed.mesh.axes):
        parts = placed.mesh.products.get(name, ())
        sizes = " * ".join(f"{p}={placed.mesh.size_of([p])}" for p in parts)
        texts.append(f"{name}={placed.mesh.size_of(parts or [name])}" + (f" ({sizes})" if parts else ""))
    return " x ".join(texts) if placed.mesh.ranks > 1 else "one rank"


def _totals(plan: Plan, run: str, entry: str) -> list[str]:
    lines = []
    for module in dict.fromkeys(i.module for i in plan.items):
        items = [i for i in plan.items if i.module == module]
        size = sum(i.bytes_per_row for i in items if i.row == "T")
        counts = ", ".join(f"{sum(i.kind == k for i in items)} {k}" for k in COLLECTIVES if any(i.kind == k for i in items))
        what = "outside the layers" if module == entry else f"in each of {items[0].times} x {module}"
        lines.append(f"{what}: {counts}; {size:,} bytes of payload a token")
    count = sum(i.times for i in plan.items)
    lines.append(
        f"{run}: {plan.bytes_per_token:,} bytes a token in {count} collectives, {plan.seconds * 1e6:,.0f} us predicted; "
        f"with its ops {plan.step_seconds * 1e6:,.0f} us"
    )
    return lines


def _bytes(item: PlanItem) -> str:
    return f"{item.bytes_per_row:,} B/{ {'T': 'token', 'S': 'sequence', '': 'step'}[item.row] }"


def explain_item(plan: Plan, placed: PlacedModel, drafts: PlacedModel | None, id: str) -> str:
    """One collective: the value, where it comes from, where it is forced, with the source lines."""
    if plan.drafter is not None and drafts is not None and any(i.id == id for i in plan.drafter.items):
        return explain_item(plan.drafter, drafts, None, id)
    item = next((i for i in plan.items if i.id == id), None)
    if item is None:
        ids = [i.id for i in (*plan.items, *(plan.drafter.items if plan.drafter else ()))]
        raise CompileError(Diagnostic("TS0502", f"the plan has no collective `{id}`; it has {', '.join(ids) or 'none'}{near(id, ids)}"))
    transition = next(t for t in placed.instances[item.module].transitions if str(t.span) == item.span and t.reason == item.reason)
    value = placed.instances[item.module].instance.values[transition.value]
    return "\n".join(
        [
            f"{item.id}: {item.kind} over {item.axis} ({item.ranks} ranks)",
            f"  {item.times} x a step, {_bytes(item)}, {item.seconds * 1e6:.1f} us predicted each",
            f"  {item.before} -> {item.after}",
            f"  the value is made here: {value.span}",
            f"    {value.span.source.line(value.span.line).strip()}",
            f"  forced here ({item.reason}): {item.span}",
            f"    {transition.span.source.line(transition.span.line).strip()}",
            *_instead(alternatives(placed, item.module, transition.value, item.kind)),
        ]
    )


def _instead(found: Sequence[Alternative]) -> list[str]:
    """What else could be done, and what it costs more in each run of the module."""
    lines = ["  rejected:" if found else "  rejected: nothing, since no plan of the module does without it"]
    for other in found:
        added, removed = ([f"{i.kind} of `{i.value}`" for i in items] for items in (other.added, other.removed))
        instead = f" instead of {', '.join(removed)}" if removed else " more"
        lines.append(f"    {', '.join(added) or 'nothing'}{instead}: {other.seconds * 1e6:+.1f} us, {other.bytes_per_token:+,} B/token")
    return lines


def simulation_table(found: Simulation) -> str:
    """A line for each call that was compared, then the verdict."""
    rows = [("value", "type", "largest difference", "ranks")]
    words = {True: "the same bits", False: "DIFFER", None: "parts of one value"}
    rows += [(c.name, c.type, f"{c.difference:.1e}", words[c.same_bits]) for c in found.comparisons]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    wrong = [c.name for c in found.comparisons if not c.holds]
    verdict = f"differs from one device, first at {wrong[0]}" if wrong else "equals one device (1e-9 of the largest value, f64)"
    return "\n".join([*lines, f"{found.ranks} ranks, {found.collectives} collectives a step: {verdict}"])


def kernel_list() -> str:
    """Ops and their kernels."""
    from tskernels import registry
    from tskernels.gpu.records import records, summary

    lines, compiled = [], records()
    for op in registry.ops():
        names = [f"{k.name} ({k.target}{_verified(k)})" for k in registry.kernels(op)]
        lines.append(f"{op:22} {', '.join(names)}")
        for kernel in registry.kernels(op):
            of_kernel = {target: found[f"{op} {kernel.name}"] for target, found in compiled.items() if f"{op} {kernel.name}" in found}
            lines += [f"{'':22}   {kernel.name}, compiled here for {target}: {summary(found)}" for target, found in of_kernel.items()]
    return "\n".join(lines)


def _verified(kernel: Kernel) -> str:
    """How far a kernel for GPUs was verified."""
    if kernel.plan is None:
        return ""
    if kernel.verified is None:
        return "; not verified"
    where = f" on {kernel.verified.device}, {kernel.verified.date}" if kernel.verified.device else ""
    return f"; {kernel.verified.level}{where}"


def kernel_why(op: str, target: str, shapes: tuple[str, ...], tuning: Path | None, tuned: bool) -> str:
    """Candidates for an op on one rank, the winner first, each with the seconds that decide. tuning: a file of measurements, None for
    this machine's if there is one; tuned: whether they count."""
    from tsc.request import find_tuning, target_named
    from tskernels import registry
    from tskernels.tuning import threads_of_rank

    call = named_call(op, shapes)
    place = target_named(target)
    found, ignored = find_tuning(place, tuning) if tuned else (None, "")
    candidates = registry.explain(call, place, found.of(threads_of_rank(1)) if found else None)
    lines = [f"{call} on {target}", *(f"  {c.kernel.name:12} {_verdict(c, candidates[0])}" for c in candidates)]
    return "\n".join([*lines, f"measurements are ignored: {ignored}"] if ignored else lines)


def named_call(op: str, shapes: Sequence[str]) -> Call:
    """A call as a command names it. Raises CompileError."""
    from tskernels import registry

    name = op if op.startswith("ts::") else f"ts::{op}"
    if name not in registry.ops():
        offered = near(name.removeprefix("ts::"), [o.removeprefix("ts::") for o in registry.ops()])
        raise CompileError(Diagnostic("TS0401", f"there is no op `{op}`{offered}"))
    return registry.Call(name, tuple(_operand(s) for s in shapes), {})


def _verdict(candidate: Candidate, winner: Candidate) -> str:
    if candidate.reason is not None:
        return f"cannot run: {candidate.reason}"
    cost = f"{'measured' if candidate.is_measured else 'predicted'} {candidate.cost_seconds * 1e6:.2f} us"
    return cost + (", of other bits in other company" if winner.kernel.fixed_bits and not candidate.kernel.fixed_bits else "")


def _operand(text: str) -> Operand:
    from tskernels.registry import ROWS, Operand

    match = re.fullmatch(r"(\w+)\[([\w, ]*)\](?: in (\w+))?", text.strip())
    if match is None:
        raise CompileError(Diagnostic("TS0402", f"`{text}` is no operand type; write one as bf16[T, 576]"))
    return Operand(match[1], tuple(int(d) if d.strip().isdigit() else None for d in match[2].split(",")), match[3] or ROWS)

"""Faults planted into PTX: each operator makes, of one line, a line that is wrong in one way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Change = Callable[[re.Match[str]], str | None]


@dataclass(frozen=True, slots=True)
class Operator:
    """What it does to a line that `pattern` matches; None where that would be no fault."""

    name: str
    pattern: str
    change: Change


@dataclass(frozen=True, slots=True)
class Mutant:
    operator: str
    line: int
    """In the text, from 1 on."""
    text: str


def _dropped(_: re.Match[str]) -> str:
    return ""


def _scoped(setup: str, operation: str) -> str:
    """Statements with a register `wrong` of their own, on one line, so that no other line moves."""
    return f"{{ .reg .b32 wrong; {setup} {operation} }}"


def _with_wrong(operand: int, setup: str) -> Change:
    """The instruction with an operand (a group of the pattern) that `setup` makes of the right one."""

    def change(match: re.Match[str]) -> str:
        begin, end = match.span(operand)
        whole = match.group(0)
        start = match.start(0)
        return _scoped(setup.format(match.group(operand)), whole[: begin - start] + "wrong" + whole[end - start :])

    return change


def _with_mask(setup: str) -> Change:
    """A multicast of a commit with another mask."""
    return lambda m: f"{{ .reg .b16 wrong; {setup.format(m.group(4))} {m.group(1)}{m.group(2)}{m.group(3)}, wrong; }}"


def _constant(bits: Callable[[int], int | None]) -> Change:
    def change(match: re.Match[str]) -> str | None:
        value = bits(int(match.group(1)))
        return None if value is None else match.group(0)[: match.start(1) - match.start(0)] + f"{value};"

    return change


def _descriptor(mask: int, flip: int) -> Callable[[int], int | None]:
    """Of a 64-bit constant that is a matrix descriptor (a swizzle in its highest bits): other bits."""
    return lambda value: value ^ flip if value >> 61 and value & mask else None


def _instruction_descriptor(flip: int) -> Callable[[int], int | None]:
    return lambda value: value ^ flip if value >> 24 in (4, 8, 16) and value >> 4 & 3 == 1 else None


STATEMENT = r"[^;]*;"
WAIT = r"mbarrier\.try_wait\.parity\S+\s+p, \[%r\d+\], (%r\d+);"
LOAD = r"cp\.async\.bulk\.tensor\.[23]d\.(?:cta_group::2\.)?shared::cluster\S+\s+"
TMA = LOAD + r"\[(%r\d+)\], \[%rd\d+, \{(%r\d+), (%r\d+)(?:, %r\d+)?\}\], \[(%r\d+)\];"
COMMIT = r"(tcgen05\.commit\S*?)(\.multicast::cluster)(\.b64\s+\[%r\d+\]), (%rs\d+);"
EXPECT = r"mbarrier\.arrive\.expect_tx\S+\s+_, \[(%r\d+)\], (%r\d+);"

OPERATORS = [
    Operator("wait dropped", WAIT, lambda m: "setp.eq.u32 p, 0, 0;"),
    Operator("wait for the other parity", WAIT, _with_wrong(1, "xor.b32 wrong, {}, 1;")),
    Operator("wait on another barrier", r"(mbarrier\.try_wait\S+\s+p, \[)(%r\d+)\]", lambda m: f"{m.group(1)}{m.group(2)}+-8]"),
    Operator("arrival dropped", rf"mbarrier\.arrive\.shared{STATEMENT}", _dropped),
    Operator("arrival twice", rf"mbarrier\.arrive\.shared{STATEMENT}", lambda m: m.group(0) + m.group(0)),
    Operator("count of a barrier one more", r"mbarrier\.init\S+\s+\[%r\d+\], (%r\d+);", _with_wrong(1, "add.u32 wrong, {}, 1;")),
    Operator("count of a barrier one less", r"mbarrier\.init\S+\s+\[%r\d+\], (%r\d+);", _with_wrong(1, "sub.u32 wrong, {}, 1;")),
    Operator("barrier never initialized", rf"mbarrier\.init{STATEMENT}", _dropped),
    Operator("bytes never expected", EXPECT, lambda m: f"mbarrier.arrive.shared::cta.b64 _, [{m.group(1)}];"),
    Operator("too few bytes expected", EXPECT, _with_wrong(2, "sub.u32 wrong, {}, 64;")),
    Operator("too many bytes expected", EXPECT, _with_wrong(2, "add.u32 wrong, {}, 64;")),
    Operator("half of the bytes expected", EXPECT, _with_wrong(2, "shr.u32 wrong, {}, 1;")),
    Operator("copy dropped", TMA, _dropped),
    Operator("copy to another place", TMA, _with_wrong(1, "add.u32 wrong, {}, 1024;")),
    Operator("copy of the next row", TMA, _with_wrong(3, "add.u32 wrong, {}, 1;")),
    Operator("copy of the next column", TMA, _with_wrong(2, "add.u32 wrong, {}, 1;")),
    Operator("copy signals another barrier", TMA, _with_wrong(4, "add.u32 wrong, {}, 8;")),
    Operator("proxy fence dropped", r"fence\.proxy\.async\S*;", _dropped),
    Operator("fence of initialization dropped", r"fence\.mbarrier_init\S*;", _dropped),
    Operator("block barrier dropped", r"\bbar\.sync\s+\d[^;]*;", _dropped),
    Operator("cluster barrier dropped", r"barrier\.cluster\.(?:arrive|wait)\S*;", _dropped),
    Operator("wgmma.fence dropped", r"wgmma\.fence\S*;", _dropped),
    Operator("wgmma group never committed", r"wgmma\.commit_group\S*;", _dropped),
    Operator("wgmma wait dropped", rf"wgmma\.wait_group{STATEMENT}", _dropped),
    Operator("wgmma wait for one group less", r"(wgmma\.wait_group\S+\s+)0;", lambda m: f"{m.group(1)}1;"),
    Operator(
        "product adds where it should not, or not where it should",
        r"setp\.ne\.b32 p, (%r\d+), 0;(?=\s*$)",
        lambda m: f"setp.eq.b32 p, {m.group(1)}, 0;",
    ),
    Operator("values not transposed", r"(wgmma\.mma_async\S+ .*\}, %rd\d+, 1, 1, 1), 1;", lambda m: f"{m.group(1)}, 0;"),
    Operator("tcgen05.fence dropped", r"tcgen05\.fence::\w+;", _dropped),
    Operator("tcgen05.commit dropped", rf"tcgen05\.commit{STATEMENT}", _dropped),
    Operator("tcgen05.commit to another barrier", r"(tcgen05\.commit\S+\s+\[)(%r\d+)\]", lambda m: f"{m.group(1)}{m.group(2)}+8]"),
    Operator("tcgen05.commit to this block alone", COMMIT, lambda m: f"{m.group(1)}{m.group(3)};"),
    Operator("tcgen05.commit to the other block alone", COMMIT, _with_mask("xor.b16 wrong, {}, 1;")),
    Operator("tcgen05.commit to no block", COMMIT, _with_mask("mov.b16 wrong, 0;")),
    Operator(
        "copy of the pair as of one block",
        rf"({LOAD})(.*)",
        lambda m: m.group(0).replace(".cta_group::2", "") if "::2" in m.group(1) else None,
    ),
    Operator("tcgen05.wait dropped", r"tcgen05\.wait::\w+\S*;", _dropped),
    Operator("product dropped", rf"tcgen05\.mma{STATEMENT}", _dropped),
    Operator("product to other columns", r"(tcgen05\.mma\S+\s+\[)(%r\d+)\]", lambda m: f"{m.group(1)}{m.group(2)}+16]"),
    Operator("load of other columns", r"(tcgen05\.ld\S+\s+\{[^}]*\}, \[)(%r\d+)\]", lambda m: f"{m.group(1)}{m.group(2)}+1]"),
    Operator("load of another warp's lanes", r"(tcgen05\.ld\S+\s+\{[^}]*\}, \[)(%r\d+)\]", lambda m: f"{m.group(1)}{m.group(2)}+2097152]"),
    Operator("too few columns allocated", r"(tcgen05\.alloc\S+\s+\[%r\d+\], )(\d+);", lambda m: f"{m.group(1)}{int(m.group(2)) // 2};"),
    Operator("allocation never released", rf"tcgen05\.dealloc{STATEMENT}", _dropped),
    Operator(
        "allocation after giving up",
        rf"tcgen05\.alloc{STATEMENT}",
        lambda m: "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned; " + m.group(0),
    ),
    Operator("descriptor: stride", r"or\.b64\s+%rd\d+, %rd\d+, (\d{16,});", _constant(_descriptor(64 << 32, 96 << 32))),
    Operator("descriptor: swizzle", r"or\.b64\s+%rd\d+, %rd\d+, (\d{16,});", _constant(_descriptor(3 << 61, 3 << 62))),
    Operator("descriptor: start", r"or\.b64\s+%rd\d+, %rd\d+, (\d{16,});", _constant(_descriptor(3 << 61, 1))),
    Operator("instruction: N", r"mov\.(?:u|b)32\s+%r\d+, (\d{9});", _constant(_instruction_descriptor(4 << 17))),
    Operator("instruction: M", r"mov\.(?:u|b)32\s+%r\d+, (\d{9});", _constant(_instruction_descriptor(12 << 24))),
    Operator("instruction: format", r"mov\.(?:u|b)32\s+%r\d+, (\d{9});", _constant(_instruction_descriptor(1 << 7))),
    Operator("instruction: transposed", r"mov\.(?:u|b)32\s+%r\d+, (\d{9});", _constant(_instruction_descriptor(1 << 16))),
    Operator("store to shared memory dropped", rf"st\.shared{STATEMENT}", _dropped),
    Operator(
        "store to the next place",
        r"(st\.shared\S+\s+\[)(%r\d+)(\+\d+)?\]",
        lambda m: f"{m.group(1)}{m.group(2)}+{int(m.group(3) or 0) + 16}]",
    ),
    Operator("store of the result dropped", rf"st\.global{STATEMENT}", _dropped),
    Operator("bulk store dropped", rf"cp\.async\.bulk\.tensor\.2d\.global{STATEMENT}", _dropped),
    Operator("bulk group never committed", r"cp\.async\.bulk\.commit_group;", _dropped),
    Operator("bulk wait dropped", rf"cp\.async\.bulk\.wait_group{STATEMENT}", _dropped),
    Operator("one round more", r"(setp\.)(?:lt|ne)(\.s32\s+%p\d+, %r\d+, %r\d+;)", lambda m: f"{m.group(1)}le{m.group(2)}"),
    Operator(
        "shuffle with another lane", r"shfl\.sync\.bfly\S+\s+%r\d+\|%p\d+, %r\d+, (%r\d+), [^;]*;", _with_wrong(1, "shl.b32 wrong, {}, 2;")
    ),
]


ADDRESS_IN_OTHER_BLOCK = Operator(
    "address in the other block", r"mapa\.shared::cluster\.u32 (%r\d+), %r\d+, (0);", _with_wrong(2, "mov.b32 wrong, 1;")
)
"""Of what only the kernel of pairs has."""


def mutants(text: str, operators: list[Operator] = OPERATORS) -> Iterator[Mutant]:
    """Every operator at every line that it changes. Lines keep their numbers."""
    lines = text.split("\n")
    for operator in operators:
        for number, line in enumerate(lines):
            match = re.search(operator.pattern, line)
            if match is None or (new := operator.change(match)) is None:
                continue
            # A guard of the instruction stays before it, where there is one; of a dropped one it goes, too.
            head, tail = line[: match.start()], line[match.end() :]
            if not new or new.startswith("{"):
                head = re.sub(r"@!?%\w+\s*$", "", head) if not new else head
            changed = [*lines[:number], head + new + tail, *lines[number + 1 :]]
            yield Mutant(operator.name, number + 1, "\n".join(changed))

"""What a run leaves: a record of each request, and a file of them that `tsrun bench compare` reads."""

from __future__ import annotations

import platform
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tsrun.errors import InputError, TsrunError

if TYPE_CHECKING:
    from tsrun.bench.client import Answer
    from tsrun.bench.sessions import Session

FORMAT = "tsrun-bench/1"


class TurnRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times are seconds; sent, ended: since the run began; first: to the first piece, None where none came; last: from the first piece to
    the last; gaps: between pieces; eligible: tokens of the prompt that the server had seen before, as far as the client knows."""

    user: int
    session: int
    turn: int
    sent: float
    ended: float
    first: float | None
    last: float
    gaps: list[float]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    eligible: int
    status: int
    error: str = ""
    cancelled: bool = False
    forked: bool = False
    hostile: Literal["nonce", "schema"] | None = None

    @classmethod
    def of(cls, answer: Answer, user: int, session: Session, turn: int, eligible: int, *, forked: bool) -> TurnRecord:
        """sent and ended are still those of the clock."""
        pieces = answer.pieces
        return cls(
            user=user,
            session=session.number,
            turn=turn,
            sent=answer.sent,
            ended=answer.ended,
            first=pieces[0] - answer.sent if pieces else None,
            last=pieces[-1] - pieces[0] if pieces else 0.0,
            gaps=[round(second - first, 5) for first, second in pairwise(pieces)],
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.cached_tokens,
            eligible=min(eligible, answer.prompt_tokens),
            status=answer.status,
            error=answer.error,
            cancelled=answer.cancelled,
            forked=forked,
            hostile=session.hostile,
        )

    @property
    def failed(self) -> bool:
        return self.status != 200 or bool(self.error)

    @property
    def tokens_per_second(self) -> float | None:
        """After the first; None where there are not two moments to count between."""
        if self.cancelled or self.failed or self.completion_tokens < 2 or self.last <= 0:
            return None
        return (self.completion_tokens - 1) / self.last


class ClientCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What measuring takes: of a core, and milliseconds that this process was late to look (50 and 99 of 100, and at most)."""

    core_share: float
    late_p50_ms: float
    late_p99_ms: float
    late_most_ms: float


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One repeat at one load. concurrency: users, or None where sessions come at a rate; joules: of the processors or devices."""

    concurrency: int | None
    rate: float | None
    repeat: int
    seconds: float
    turns: list[TurnRecord]
    client: ClientCost
    joules: float | None = None


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """label: of a configuration, whose runs are a line of a front; how: the options that sessions follow from; devices: that served."""

    format: str
    kind: str
    label: str
    model: str
    devices: int
    how: dict[str, Any]
    machine: dict[str, str]
    runs: list[Run]


def machine() -> dict[str, str]:
    """Of the client; the same one where the server is this machine's."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text(errors="replace").splitlines() if line.startswith("model name")]
        name = f"{models[0]}, {len(models)} cores" if models else name
    return {"processor": name, "system": platform.platform(), "python": platform.python_version()}


def write(result: Result, file: Path) -> None:
    """Whole or not at all."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(msgspec.json.encode(result) + b"\n")
        part.replace(file)
    except OSError as error:
        raise TsrunError(str(file), f"can not be written ({error.strerror})", "name a file in a folder that is there") from None


def read(file: Path) -> Result:
    """Raises InputError where it is none."""
    try:
        result = msgspec.json.decode(file.read_bytes(), type=Result)
    except OSError as error:
        raise InputError(str(file), f"can not be read ({error.strerror})", "name a file that `tsrun bench ... --json FILE` wrote") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            str(file), f"is no result of `tsrun bench` ({error})", "name a file that `tsrun bench ... --json FILE` wrote"
        ) from None
    if result.format != FORMAT:
        raise InputError(str(file), f"has the format {result.format}, this tsrun reads {FORMAT}", "run the benchmark again")
    return result

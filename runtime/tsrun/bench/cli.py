"""The commands `tsrun bench ...`. Nothing heavy is imported before one runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tsrun.debugging import debug_option
from tsrun.errors import UsageError

if TYPE_CHECKING:
    from tsrun.bench.agentic import AgenticOptions

Command = TypeVar("Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
_FLOOR = click.option(
    "--floor", type=click.FloatRange(min=0), default=70.0, show_default=True, help="Tokens a second of a user, for goodput."
)


class _Numbers(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`1,2,4`."""

    name = "N,N,..."

    def __init__(self, of: type[int] | type[float]) -> None:
        self._of = of

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self._of(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers like 1,2,4", param, context)
        if not found or min(found) <= 0:
            self.fail(f"{value!r}: each is more than 0", param, context)
        return found


@click.group("bench")
@debug_option
def bench_group() -> None:
    """Measure a server or an engine under load."""


_SERVER = (
    click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Of any server with OpenAI's API."),
    click.option("--label", help="What the result is called in tables and pictures [default: the URL]."),
    click.option("--model", help="As the server calls it [default: the first that it has]."),
    click.option("--api-key", envvar="TSRUN_API_KEY", help="What the server asks for."),
    click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="That the server has."),
)
_LOADS = (
    click.option("--concurrency", type=_Numbers(int), default=(), help="Numbers of users, a run each [default: 1,2,4,8,16]."),
    click.option("--rate", "rates", type=_Numbers(float), default=(), help="Or arrivals a minute, whatever is under way; a run each."),
    click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True),
    click.option("--seed", type=int, default=0, show_default=True, help="What follows from one seed is the same."),
    click.option("--own-lengths", "forces_length", flag_value=False, default=True, help="Answers end where the model ends them, too."),
    click.option(
        "--tokens-per-word", type=click.FloatRange(0, min_open=True), help="Of the model's tokenizer [default: the server is asked]."
    ),
    click.option("--most-seconds", type=click.FloatRange(0, min_open=True), default=float("inf"), help="End a run then in any case."),
    _FLOOR,
)
_SESSIONS = (
    click.option("--workload", type=_PATH, help="What sessions are drawn from, TOML [default: the one that comes with the program]."),
    click.option("--trace", type=_PATH, help="Recorded sessions instead, JSON lines of messages as OpenAI's."),
    click.option("--sessions", type=click.IntRange(min=1), default=8, show_default=True, help="Of a run, or as many as users."),
    click.option("--scale", "lengths", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of what is read."),
    click.option("--answers", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of answers' lengths."),
    click.option("--turns", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of the number of turns."),
    click.option("--pace", type=click.FloatRange(0), default=1.0, show_default=True, help="Of the time that tools and humans take."),
    click.option("--native-tools", is_flag=True, help="Give tools as such, and follow the calls that the model makes."),
)
_JSON = click.option("--json", "json", type=_PATH, help="Write every turn there.")


def _options(*groups: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


def _agentic(rest: dict[str, Any]) -> AgenticOptions:
    from tsrun.bench.agentic import AgenticOptions
    from tsrun.bench.sessions import Scale

    scale = Scale(*(rest.pop(name) for name in ("lengths", "answers", "turns", "pace")))
    return AgenticOptions(label=rest.pop("label") or rest["url"], scale=scale, **rest)


@bench_group.command("agentic")
@_options(_SERVER, _SESSIONS, _LOADS, [_JSON])
@debug_option
def agentic_command(**rest: Any) -> None:
    """Sessions of coding agents: long shared beginnings, many turns, tools, forks, pauses."""
    from tsrun.bench.agentic import agentic

    agentic(_agentic(rest))


@bench_group.command("serve")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--answer-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--shared-tokens", type=click.IntRange(min=0), default=0, show_default=True, help="Of the prompt, which all have.")
@click.option("--requests", type=click.IntRange(min=1), default=32, show_default=True, help="Of a run, or as many as users.")
@_options(_SERVER, _LOADS, [_JSON])
@debug_option
def serve_command(prompt_tokens: int, answer_tokens: int, shared_tokens: int, requests: int, label: str | None, **rest: Any) -> None:
    """Requests of one length that have nothing to do with each other."""
    from tsrun.bench.agentic import AgenticOptions, agentic

    if shared_tokens >= prompt_tokens:
        raise UsageError("--shared-tokens", f"{shared_tokens} of {prompt_tokens} leave nothing of a prompt's own", "share fewer")
    shape = (prompt_tokens, answer_tokens, shared_tokens)
    agentic(AgenticOptions(label=label or rest["url"], sessions=requests, requests=shape, **rest))


_ENGINE = (
    click.argument("artifact", type=_PATH, metavar="NAME.tsa"),
    click.option("--label", help="What the result is called in tables and pictures [default: the artifact's name]."),
    click.option("--batch", "batches", type=_Numbers(int), default="1,8", show_default=True, help="Numbers of sequences, a run each."),
    click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True),
    click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a rank [default: the cores divided among the ranks]."),
    _JSON,
    _FLOOR,
)


@bench_group.command("decode")
@_options(_ENGINE)
@click.option("--context", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens that each sequence has.")
@click.option("--tokens", type=click.IntRange(min=2), default=64, show_default=True, help="That each makes.")
@click.option("--speculate", type=click.Choice(["off", "lookup", "mtp"]), default="off", show_default=True)
@debug_option
def decode_command(artifact: Path, label: str | None, **rest: Any) -> None:
    """Sequences that make tokens, by the engine alone, without a server."""
    from tsrun.bench.engine_bench import EngineOptions, engine_bench

    engine_bench(EngineOptions(artifact, "decode", label or artifact.stem, **rest))


@bench_group.command("prefill")
@_options(_ENGINE)
@click.option("--context", type=click.IntRange(min=1), default=1024, show_default=True, help="Tokens of each prompt.")
@debug_option
def prefill_command(artifact: Path, label: str | None, **rest: Any) -> None:
    """Prompts to their first tokens, by the engine alone, without a server."""
    from tsrun.bench.engine_bench import EngineOptions, engine_bench

    engine_bench(EngineOptions(artifact, "prefill", label or artifact.stem, tokens=1, speculate="off", **rest))


@click.command("sweep")
@click.argument("model", type=_PATH, metavar="NAME.tsa|CHECKPOINT")
@click.option("--try", "tried", multiple=True, required=True, metavar="OPTION=VALUE,...", help="Of `tsrun serve`, or of `tsc compile`.")
@click.option("--one-by-one", is_flag=True, help="Change one option at a time, instead of trying all combinations.")
@click.option("--folder", type=_PATH, help="Write the result of each configuration there, for `tsrun bench compare`.")
@_options(_SESSIONS, _LOADS)
@debug_option
def sweep_command(model: Path, tried: tuple[str, ...], one_by_one: bool, folder: Path | None, **rest: Any) -> None:
    """Serve a model in several ways, run the same sessions against each, and say which to deploy."""
    from tsrun.bench.sweep import sweep

    sweep(model, tried, _agentic({**rest, "url": "http://127.0.0.1", "label": None}), one_by_one=one_by_one, folder=folder)


@bench_group.command("compare")
@click.argument("files", nargs=-1, type=_PATH, metavar="A.json B.json ...")
@click.option("--plot", type=_PATH, help="Draw the front: a name that ends in .png or .html.")
@_FLOOR
@debug_option
def compare_command(files: tuple[Path, ...], plot: Path | None, floor: float) -> None:
    """Several results side by side, and which loads are on the front."""
    from tsrun.bench.compare import compare

    if not files:
        raise UsageError("compare", "no results", "name files that `tsrun bench ... --json FILE` wrote")
    compare(files, plot, floor)

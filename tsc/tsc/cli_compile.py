"""`tsc compile`, and `tsc tune`, which measures what a compilation chooses among. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tsc.cli_options import CONFIG, CONTEXT, DTYPE, ENTRY, MESH, NO_TUNING, TUNING, progress, read_config

if TYPE_CHECKING:
    from tsc.request import Cache, Quantize, Request

Command = TypeVar("Command", bound=Callable[..., Any])
TOKENS = "1,8,64,512"
"""Of the steps that are measured: a user's next token, several users', and prompts."""


def _compiled(command: Command) -> Command:
    """What a model is compiled from, and how: the inputs of a Request."""
    for option in (
        click.option(
            "--cache",
            type=click.Choice(["dtype", "int8", "fp8"]),
            default="dtype",
            show_default=True,
            help="dtype: keys and values in --dtype; int8: in bytes with a scale each; fp8: in e4m3, latent caches too; "
            "either takes half the memory of bf16",
        ),
        click.option(
            "--quantize",
            type=click.Choice(["auto", "none", "int8", "int4"]),
            default="auto",
            show_default=True,
            help="auto: what a checkpoint stores quantized as it is, where the target has kernels for it; "
            "none: everything in --dtype; int8: rounded to q8_0; int4: layers rounded to 4 bits, tables and the head to 8",
        ),
        click.option("--screen/--no-screen", default=True, show_default=True, help="store a copy of the head that says which logits count"),
        click.option("--topology", help="links that plans are chosen for: a name, or a .toml file; by default the target's"),
        DTYPE,
        MESH,
        ENTRY,
        CONTEXT,
        CONFIG,
        click.option("--weights", type=click.Path(path_type=Path), help="checkpoint directory or GGUF file"),
        click.argument("model", type=click.Path(path_type=Path), required=False),
    ):
        command = option(command)
    return command


def _request(
    model: Path | None,
    weights: Path | None,
    config: Path | None,
    context: int | None,
    entry: str | None,
    mesh: str | None,
    dtype: str,
    topology: str | None,
    screen: bool,
    quantize: Quantize,
    cache: Cache,
) -> Request:
    """For this machine. A checkpoint may stand in the model file's place."""
    from tsc.front import parse_mesh
    from tsc.request import Request

    if model is not None and weights is None and model.suffix != ".ts":
        model, weights = None, model
    if model is None and weights is None and config is None:
        raise click.UsageError("give a model file, --weights, or both")
    return Request(model, weights, config, parse_mesh(mesh), dtype, "cpu", topology, screen, quantize, cache, entry=entry, context=context)


def _note_context(request: Request) -> None:
    """Say where --context changes nothing. Raises CompileError."""
    source = request.config or request.weights
    if source is not None and request.context is not None:
        read_config(source, request.context)


@click.command("compile")
@_compiled
@click.option("--target", default="cpu", show_default=True, help="where it will run")
@click.option(
    "--steps",
    metavar="NAME=SIZE,...",
    help="of --target jax, whose programs have fixed shapes: tokens of the largest step, sequences at once, and pages of the cache "
    "[default: tokens=256,sequences=16,pages=2048]",
)
@TUNING
@NO_TUNING
@click.option(
    "--importance", type=click.Path(path_type=Path), help="with --quantize int4: what `tsrun importance` measured, which the rounding minds"
)
@click.option("--head", type=click.Path(path_type=Path), help="checkpoint directory of an EAGLE-3 head for the model, which drafts")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="the artifact, NAME.tsa")
@click.option("--key", is_flag=True, help="print what identifies the result as JSON, and compile nothing")
def compile_(
    model: Path | None,
    weights: Path | None,
    config: Path | None,
    context: int | None,
    entry: str | None,
    mesh: str | None,
    dtype: str,
    target: str,
    steps: str | None,
    topology: str | None,
    screen: bool,
    quantize: Quantize,
    cache: Cache,
    tuning: Path | None,
    no_tuning: bool,
    importance: Path | None,
    head: Path | None,
    output: Path | None,
    key: bool,
) -> None:
    """Compile a model, with a checkpoint's weights, into an artifact.

    MODEL is a model file; without one it is found by the checkpoint's architecture. A checkpoint may stand in its place.
    """
    from tsc.request import compile_key, parse_steps, tuning_of

    asked = _request(model, weights, config, context, entry, mesh, dtype, topology, screen, quantize, cache)
    request = replace(asked, target=target, tuning=tuning, tuned=not no_tuning, importance=importance)
    request = replace(request, head=head, steps=parse_steps(steps))
    if key:
        click.echo(json.dumps(compile_key(request), indent=2))
        return
    _, ignored = tuning_of(request)
    if ignored:
        click.echo(f"note: measurements are ignored: {ignored}", err=True)
    from tsc.driver import compile_artifact

    _note_context(request)
    source = request.weights or request.model or config
    assert source is not None
    path = output or Path(f"{source.stem}.tsa")
    with progress() as step:
        compiled = compile_artifact(request, path, step)
    if compiled.left_out:
        others = ", ".join(f"{name} ({count})" for name, count in sorted(compiled.left_out.items()))
        click.echo(f"note: the artifact is of text alone; tensors left out: {others}", err=True)
    click.echo(f"wrote {path}")
    if (request.tuning is not None and request.tuned) or compiled.measured:
        click.echo(f"kernels of {compiled.measured} of {compiled.calls} calls chosen by measurement")
    if compiled.quantization.formats:
        from tsc.quantization_table import print_report

        print_report(compiled.quantization)


@click.command()
@_compiled
@click.option("--tokens", default=TOKENS, show_default=True, help="of the steps to measure, which count alike")
@click.option("--again", is_flag=True, help="measure what was measured already, too")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="the tuning file; by default one that `tsc compile` finds")
def tune(
    model: Path | None,
    weights: Path | None,
    config: Path | None,
    context: int | None,
    entry: str | None,
    mesh: str | None,
    dtype: str,
    topology: str | None,
    screen: bool,
    quantize: Quantize,
    cache: Cache,
    tokens: str,
    again: bool,
    output: Path | None,
) -> None:
    """Measure the kernels that a model's compilation has to choose among, on this machine.

    MODEL and its options are those of `tsc compile`, which then chooses by what was measured. Only what is missing is measured.
    """
    from tskernels.tuning import default_path
    from tskernels.waiting import spin_briefly

    spin_briefly()  # as the runtime does, before torch is loaded
    sizes = _sizes(tokens)
    request = _request(model, weights, config, context, entry, mesh, dtype, topology, screen, quantize, cache)
    _note_context(request)
    path = output or default_path()
    from tsc.tune import start
    from tsc.tune import tune as run
    from tsc.tuning_table import print_tuned

    tuning, stale = start(path, named=output is not None, again=again)
    if stale:
        click.echo(f"note: measuring all anew: {stale}", err=True)
    busy, cores = os.getloadavg()[0], tuning.machine.cores
    if busy > cores / 2:
        click.echo(f"note: others use the machine (load {busy:.1f} of {cores} cores), which shows in what is measured", err=True)
    with progress("tune") as step:
        tuned = run(request, tuning, sizes, step, lambda: tuning.write(path), again=again)
    print_tuned(tuned, tuning)
    click.echo(f"measured {tuned.measured} of {len(tuned.contests)} calls with {tuned.threads} threads; {path}")


def _sizes(tokens: str) -> list[int]:
    from tskernels.tuning import MOST_TOKENS

    try:
        sizes = [int(n) for n in tokens.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(1 <= n <= MOST_TOKENS for n in sizes):
        raise click.BadParameter(f"{tokens!r} is no list of numbers from 1 to {MOST_TOKENS:,}, as in {TOKENS}", param_hint="--tokens")
    return sizes

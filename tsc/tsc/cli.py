"""The command `tsc`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tsc import __version__
from tsc.cli_compile import compile_, tune
from tsc.cli_options import CONFIG, CONTEXT, DTYPE, ENTRY, MESH, NO_TUNING, TUNING, progress, read_config
from tsc.diagnostics import CompileError, MissingCapability

if TYPE_CHECKING:
    from tsc.front import ModelSource
    from tspasses.placed import PlacedModel

MODEL = click.argument("model", type=click.Path(path_type=Path))
DENY = click.option("--deny", multiple=True, metavar="KIND", help="a collective that the plan may not use; repeatable")


DEBUG = "tsc.debug"
"""The key that --debug sets for a whole command line."""


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


class Commands(click.Group):
    """A group whose errors are one finding each, on stderr: 1 the input is wrong, 2 usage, 3 the machine lacks something. It and each of
    its commands take --debug."""

    group_class = type

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(_debug_option())

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if not isinstance(cmd, Commands):
            cmd.params.append(_debug_option())
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CompileError, MissingCapability, BrokenPipeError) as error:
            if ctx.meta.get(DEBUG):
                raise
            self.report(ctx, error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            if ctx.meta.get(DEBUG):
                raise
            click.echo(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror or error}", err=True)
            ctx.exit(3)
        except Exception as error:
            if ctx.meta.get(DEBUG):
                raise
            click.echo(f"error: internal: {type(error).__name__}: {error}; this is our bug: --debug shows where", err=True)
            ctx.exit(1)

    @staticmethod
    def report(ctx: click.Context, error: Exception) -> None:
        match error:
            case CompileError():
                click.echo("\n".join(d.render() for d in error.diagnostics), err=True)
                ctx.exit(1)
            case MissingCapability():
                click.echo(f"error: {error}", err=True)
                ctx.exit(3)
            case _:
                sys.stderr.close()  # the reader of our output went away
                ctx.exit(1)


def _debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="show tracebacks")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tsc")
def main() -> None:
    """Compile large language models: placements at module boundaries, every collective inferred."""


@main.command()
@MODEL
@CONFIG
@CONTEXT
@ENTRY
@MESH
@DENY
def check(model: Path, config: Path | None, context: int | None, entry: str | None, mesh: str | None, deny: tuple[str, ...]) -> None:
    """Check names, shapes and placements of a model file: of the entry first, then of all modules that it does not reach."""
    from tsc.front import read_model

    if context is not None and config is None:
        raise click.UsageError("--context is about the rope scaling of a config: give --config")
    values = None if config is None else read_config(config, context)
    placed = _place(read_model(model), values, mesh, "bf16", deny=deny, entry=entry, every=True)
    modules = len({i.module for i in placed.typed.instances.values()})
    click.echo(
        f"{model}: {modules} modules check ({f'config {config}' if config else 'any config'}; {f'mesh {mesh}' if mesh else 'any mesh'})"
    )


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="the model file [default: named for the config's model_type]")
def new(config: Path, output: Path | None) -> None:
    """Start a model file for an architecture that has none.

    CONFIG is a config.json, or a checkpoint directory; names of weights beside it count, too. The file is that of the nearest known
    architecture, with what differs marked.
    """
    from tsc.checkpoint.config import load_config
    from tsc.new_model import start, write

    found = start(config)
    path = output or Path(f"{load_config(config)[0].get('model_type') or config.stem}.ts")
    write(path, found.text)
    click.echo(f"wrote {path}, started from {found.model.name}.ts: {found.why}")
    for difference in found.differences:
        where = f"{found.model.name}.ts:{difference.line}" if difference.line else "nowhere"
        click.echo(f"  {where}: {difference.text}")


@main.command()
@MODEL
@click.option("--config", type=click.Path(path_type=Path), required=True, help="config.json, a checkpoint directory, or a GGUF file")
@CONTEXT
@ENTRY
@MESH
@DTYPE
@DENY
@click.option("--tokens", type=click.IntRange(1), default=1, show_default=True, help="tokens in the step that costs are compared at")
@click.option("--topology", default="h100-nvlink", show_default=True, help="links that costs are predicted for: a name, or a .toml file")
@click.option("--json", "as_json", is_flag=True, help="the plan as JSON")
@click.option("--explain", metavar="ID", help="one collective of the plan, with its places")
@click.option("--by-tokens", is_flag=True, help="from which step size on another plan is cheaper, up to 65,536 tokens")
@click.option("--diff", metavar="PLAN.json", type=click.Path(path_type=Path), help="beside another plan, which --json wrote")
@click.option("--exit-code", is_flag=True, help="with --diff: exit with 1 where the plans differ")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="a page to walk through source, graphs and collectives")
@click.option("--meshes", is_flag=True, help="every way to share out these ranks among the model's axes, and what each costs")
@click.option("--suggest", is_flag=True, help="boundaries of modules that would make a step cheaper; none is changed")
def plan(
    model: Path,
    config: Path,
    context: int | None,
    entry: str | None,
    mesh: str | None,
    dtype: str,
    deny: tuple[str, ...],
    tokens: int,
    topology: str,
    as_json: bool,
    explain: str | None,
    by_tokens: bool,
    diff: Path | None,
    exit_code: bool,
    html: Path | None,
    meshes: bool,
    suggest: bool,
) -> None:
    """Show every collective of a model on a mesh: what, why, and how many bytes."""
    from tsc.front import parse_mesh, place_drafter, read_model
    from tsc.plan_diff import diff as compare
    from tsc.plan_diff import read_plan
    from tsc.report import arrangement_table, bucket_table, explain_item, plan_table, suggestion_table
    from tspasses.plan import plan_of

    if sum((as_json, explain is not None, by_tokens, diff is not None, html is not None, meshes, suggest)) > 1:
        raise click.UsageError("give one of --json, --explain, --by-tokens, --diff, --html, --meshes and --suggest")
    if exit_code and diff is None:
        raise click.UsageError("--exit-code says whether plans differ, with --diff PLAN.json")
    other = None if diff is None else read_plan(diff)

    values, source = read_config(config, context), read_model(model)
    placed = _place(source, values, mesh or "", dtype, deny=deny, tokens=tokens, topology=topology, entry=entry)
    is_of_one = by_tokens or html is not None or meshes or suggest
    drafts = None if is_of_one else place_drafter(source, values, parse_mesh(mesh) or {}, placed)
    found = plan_of(placed, drafts)
    if explain is not None:
        click.echo(explain_item(found, placed, drafts, explain))
    elif as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    elif by_tokens:
        from tspasses.plan_set import LARGEST, plan_set

        with progress("plan", lines=False) as step:
            buckets = plan_set(placed.typed, placed.options, progress=lambda tokens: step(f"place, {tokens} tokens", 0, 1))
        click.echo(bucket_table(buckets, LARGEST))
    elif other is not None:
        text, same = compare(found.to_json(), other, str(diff))
        click.echo(text)
        if exit_code and not same:
            raise click.exceptions.Exit(1)
    elif html is not None:
        from tsc.plan_page import plan_page, write_page

        write_page(html, plan_page(found, placed, model.name))
        click.echo(f"wrote {html}")
    elif meshes:
        from tspasses.meshes import arrangements

        every = arrangements(source.file, values, placed.mesh.ranks, placed.options, entry)
        click.echo(arrangement_table(every, placed))
    elif suggest:
        from tspasses.suggest import suggestions

        click.echo(suggestion_table(suggestions(placed), placed))
    else:
        click.echo(plan_table(found, placed, drafts))


@main.command()
@MODEL
@click.option("--config", type=click.Path(path_type=Path), required=True, help="config.json, a checkpoint directory, or a GGUF file")
@CONTEXT
@ENTRY
@click.option("--mesh", required=True, help="ranks on each axis, as in tp=4")
@click.option("--seed", type=int, default=0, show_default=True, help="of the random weights and tokens")
def simulate(model: Path, config: Path, context: int | None, entry: str | None, mesh: str, seed: int) -> None:
    """Run a model on simulated ranks beside one device, and compare what each module returns.

    In f64 with random weights of the config's sizes; exit 1 where they differ.
    """
    from tsc.front import parse_mesh, read_model
    from tsc.report import simulation_table
    from tsc.simulation.simulate import simulate as run

    found = run(read_model(model), read_config(config, context), parse_mesh(mesh) or {}, seed, entry)
    click.echo(simulation_table(found))
    if not all(c.holds for c in found.comparisons):
        raise click.exceptions.Exit(1)


main.add_command(compile_)
main.add_command(tune)


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
def inspect(artifact: Path) -> None:
    """What an artifact holds: for which model, mesh and target, which kernels, and what its programs and their machine code take."""
    from tsc.inspection import inspected

    for line in inspected(artifact):
        click.echo(line)


@main.group()
def kernels() -> None:
    """What the kernel registry holds, and why it chooses what it does."""


@kernels.command("list")
def kernels_list() -> None:
    """Every op with its kernels."""
    from tsc.report import kernel_list

    click.echo(kernel_list())


@kernels.command("why")
@click.argument("op")
@click.option("--target", default="cpu", show_default=True)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    required=True,
    metavar="bf16[T,576]",
    help="one operand's type, `T` for a dynamic extent, of a weight or a cache its layout (`f32[64,64] in panels`); repeat in order",
)
@TUNING
@NO_TUNING
def kernels_why(op: str, target: str, shapes: tuple[str, ...], tuning: Path | None, no_tuning: bool) -> None:
    """Every kernel that could run an op on these operands, and the reason each other one lost."""
    from tsc.report import kernel_why

    click.echo(kernel_why(op, target, shapes, tuning, not no_tuning))


@kernels.command("roof")
@click.argument("op")
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    required=True,
    metavar="bf16[16,576]",
    help="one operand's type, every size a number; repeat in order",
)
@click.option("--device", "devices", multiple=True, help="h100, h200, b200, b300, mi300x, mi355x; repeatable [default: the first three]")
@click.option("--efficiency", type=click.FloatRange(0, 1, min_open=True), help="predict a time: this share of the device's rates")
@click.option("--overhead-us", type=click.FloatRange(0), default=0.0, show_default=True, help="of a prediction: launches, combining")
@click.option("--results", type=click.Path(path_type=Path), help="folder of runs on devices [default: the checkout's benchmarks/results]")
def kernels_roof(
    op: str, shapes: tuple[str, ...], devices: tuple[str, ...], efficiency: float | None, overhead_us: float, results: Path | None
) -> None:
    """What an op must move and compute at a shape, the time that takes at least, and what runs on devices achieved."""
    from tsc.roof_report import roof

    click.echo(roof(op, shapes, devices or ("h100", "h200", "b200"), efficiency, overhead_us * 1e-6, results))


@main.command("rules")
def rules_() -> None:
    """The placement rules of every function of the language."""
    from tsc.rules_page import page

    click.echo(page(), nl=False)


@main.command()
@click.argument("code")
def explain(code: str) -> None:
    """The page of a diagnostic's code."""
    from tsc.explain import page

    click.echo(page(code))


@main.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--check", "only_check", is_flag=True, help="change nothing; exit 1 if a file would change")
def fmt(files: tuple[Path, ...], only_check: bool) -> None:
    """Format model files, in the one style there is."""
    from tsc.parser import read_source
    from tsc.printer import format_file

    changed = 0
    for path in files:
        source = read_source(path)
        text = format_file(source)
        if text != source.text:
            changed += 1
            click.echo(f"{'would format' if only_check else 'formatted'} {path}")
            if not only_check:
                _replace_text(path, text)
    if only_check and changed:
        raise click.exceptions.Exit(1)


def _replace_text(path: Path, text: str) -> None:
    """The file has the old text or the new one, never a part. Raises MissingCapability when it cannot be written."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MissingCapability(f"{path}: cannot be written: {error.strerror}; it is as it was") from None


def _place(
    model: ModelSource,
    config: Mapping[str, Any] | None,
    mesh: str | None,
    dtype: str,
    *,
    deny: tuple[str, ...],
    tokens: int = 1,
    topology: str = "h100-nvlink",
    entry: str | None = None,
    every: bool = False,
) -> PlacedModel:
    from tsc.front import parse_mesh, place_model
    from tspasses.placed import Options
    from tspasses.topology import topology as links
    from tspasses.transitions import COLLECTIVES

    for kind in deny:
        if kind not in COLLECTIVES:
            raise click.BadParameter(f"{kind!r} is none of {', '.join(COLLECTIVES)}", param_hint="--deny")
    options = Options(dtype, tokens, 1, links(topology), frozenset(deny))
    sizes = parse_mesh(mesh) if mesh else (None if mesh is None else {})
    return place_model(model, config, sizes, options, entry=entry, every=every)

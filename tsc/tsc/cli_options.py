"""What several commands share: options, and how they show progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

CONFIG = click.option("--config", type=click.Path(path_type=Path), help="config.json, a checkpoint directory, or a GGUF file")
MESH = click.option("--mesh", help="ranks on each axis, as in tp=8")
TUNING = click.option(
    "--tuning", type=click.Path(path_type=Path), help="a file of measurements that choose kernels; by default the one that `tsc tune` keeps"
)
NO_TUNING = click.option("--no-tuning", is_flag=True, help="choose kernels by the cost model alone, whatever --tuning says")
CONTEXT = click.option(
    "--context",
    type=click.IntRange(min=1),
    help="tokens of the longest sequence, for rope scalings that depend on it (longrope, dynamic) [default: the model's]",
)
ENTRY = click.option("--entry", metavar="NAME", help="which entry of the model file [default: the first]")
DTYPE = click.option("--dtype", type=click.Choice(["bf16", "f32"]), default="bf16", show_default=True, help="element type of the model")


def read_config(config: Path, context: int | None) -> dict[str, Any]:
    """The configuration for sequences of that length; a line says where it changes nothing. Raises CompileError."""
    from tsc.checkpoint.config import depends_on_length, for_sequences_of, load_config

    values, _ = load_config(config)
    if context is not None and not depends_on_length(values):
        click.echo(f"note: --context {context} changes nothing: the rope of {config} is the same for sequences of any length", err=True)
    return for_sequences_of(values, context)


class progress:  # noqa: N801  (reads as a function where it is used)
    """A live line on a terminal, plain lines elsewhere where they are wanted; on stderr."""

    def __init__(self, what: str = "compile", *, lines: bool = True) -> None:
        self.what, self.lines = what, lines

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self.bar = None
        if not console.is_terminal:
            seen: set[str] = set()

            def plain(stage: str, done: int, total: int) -> None:
                if stage not in seen and self.lines:
                    seen.add(stage)
                    click.echo(f"{self.what}: {stage}", err=True)

            return plain
        self.bar = Progress(
            TextColumn(f"{self.what}: " + "{task.description:<24}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        )
        self.bar.start()
        task = self.bar.add_task("", total=1)

        def live(stage: str, done: int, total: int) -> None:
            assert self.bar is not None
            self.bar.update(task, description=stage, completed=done, total=max(total, 1))

        return live

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.stop()

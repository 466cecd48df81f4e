"""`--debug`, which every command of `tsrun` takes, before its name or after it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import click


@dataclass
class State:
    """What `--debug` sets, anywhere on the command line."""

    debug: bool = False


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(State).debug = True
        os.environ["TSRUN_DEBUG"] = "1"  # the other ranks are processes


debug_option = click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="Show tracebacks.")

"""What `tsrun top URL` does: a running server at a glance, in a terminal."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from tsrun.errors import MachineError, UsageError

_PERIOD_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0


def top(url: str, api_key: str | None, *, once: bool, as_json: bool) -> None:
    """Show the server until Ctrl-C; `once` where nobody watches. Raises MachineError where it does not answer."""
    if as_json:
        print(json.dumps(_status(url, api_key)))
        return
    console = Console()
    if once or not console.is_terminal:
        console.print(_table(_status(url, api_key)))
        return
    with Live(_table(_status(url, api_key)), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_PERIOD_SECONDS)
            live.update(_table(_status(url, api_key)), refresh=True)


def _status(url: str, api_key: str | None) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise UsageError(url, "is not the address of a server", "give http://HOST:PORT")
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(url.rstrip("/") + "/status", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        mend = "give --api-key KEY" if error.code == 401 else "give the address of a `tsrun serve`"
        raise MachineError(url, f"answers {error.code} {error.reason}", mend) from None
    except (OSError, ValueError) as error:
        raise MachineError(
            url, f"does not answer ({getattr(error, 'reason', error)})", "start `tsrun serve`, or give its address"
        ) from None
    if not isinstance(found, dict) or "tokens_per_second" not in found:
        raise MachineError(url, "is no server of ours", "give the address of a `tsrun serve`")
    return found


def _table(status: dict[str, Any]) -> Table:
    state = "" if status["ready"] else ", shutting down"
    table = Table(title=f"{status['model']}{state}", show_header=False, box=None, padding=(0, 2), title_justify="left")
    table.add_row("tokens a second", f"{status['tokens_per_second']:,.1f}")
    table.add_row("requests", f"{status['running']} running of {status['max_sequences']}, {status['waiting']} waiting")
    table.add_row("pages held", ProgressBar(total=status["pages"], completed=status["pages_held"], width=40))
    table.add_row("", f"{status['pages_held']:,} of {status['pages']:,}, and {status['pages_cached']:,} kept for later")
    share = 100 * status["cached_tokens"] / max(status["prompt_tokens"], 1)
    table.add_row("prompts", f"{status['prompt_tokens']:,} tokens, {share:.1f} % cached")
    table.add_row("answers", f"{status['generated_tokens']:,} tokens in {status['steps']:,} steps, {status['preemptions']:,} preemptions")
    table.add_row("up", f"{status['uptime_seconds']:,.0f} s")
    return table

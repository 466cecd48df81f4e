"""Sessions of coding agents against our server, llama.cpp's and vLLM's on this machine's CPU: the same ones, taking turns, and the front.

usage: python benchmarks/agentic.py [--model gemma|smollm2] [--peers llama-cpp=PROGRAM,vllm=PYTHON] [--concurrency 1,2,4,8,16]
                                    [--repeats 3] [--sessions 4] [--most-seconds N,...] [--seed N] [--context 4096] [--folder RESULTS]
                                    [--plot FILE.png|html] [--ours "LABEL=OPTIONS OF tsrun serve"]... [--weights FOLDER] [--quick]

All servers are up for the whole time, with two threads each, and wait while another is measured; the client is this process, on the same
two cores. Contenders take turns at each number of users, in another order each repeat. Sessions are those of `tsrun bench agentic` (its
defaults, scaled: conversations of up to 4,000 tokens, answers of 55 in the median, a third of the turns, a twentieth of the pauses), told
apart by what they say: none finds what another repeat left. Answers are as long as asked for (`ignore_eos`), so that all make as many
tokens, and greedy. RESULTS gets a file of each contender after each repeat, for `tsrun bench compare`. How the peers are installed:
benchmarks/peers/README.md.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
from cpu_weights import Weights, default_folder, prepare
from peers import llama_server, vllm_server
from peers.process import CONVERSATION, free_port, running
from rich.console import Console

from tsrun.bench.agentic import Agentic, AgenticOptions, progress_bar
from tsrun.bench.compare import draw
from tsrun.bench.records import Result, write
from tsrun.bench.report import aligned, markdown, rows
from tsrun.bench.servers import served
from tsrun.bench.sessions import Scale

CONTEXT = 131072  # of the workload
ANSWERS, TURNS, PACE = 0.25, 1 / 3, 0.05
THREADS = 2


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with it
    given = arguments()
    context = given.context
    weights = prepare(given.model, given.weights, lambda line: print(line, file=sys.stderr))
    users = max(given.concurrency)
    scale = Scale(lengths=4000 / CONTEXT if not given.quick else 0.01, answers=ANSWERS, turns=TURNS if not given.quick else 0.1, pace=PACE)
    options = AgenticOptions(
        "",
        "",
        concurrency=given.concurrency,
        repeats=given.repeats,
        sessions=given.sessions,
        seed=given.seed,
        scale=scale,
        floor=given.floor,
    )
    with ExitStack() as stack:
        limits = ["--max-sequences", str(users), "--max-context", str(context), "--threads", str(THREADS)]
        limits += ["--chat-template", str(CONVERSATION)]
        urls = {}
        for label, _, more in (one.partition("=") for one in given.ours):
            urls[label] = stack.enter_context(served(weights.artifact, [*limits, *shlex.split(more)]))
        versions = {}
        for peer, program in given.peers.items():
            port = free_port()
            command, environment, versions[peer] = started(peer, program, weights, port, users, context)
            urls[peer] = stack.enter_context(running(command, port, environment))
        benches: list[Agentic] = []
        for label, url in urls.items():
            per_word = benches[0].tokens_per_word if benches else None  # the same words for all
            benches.append(Agentic(replace(options, url=url, label=label, tokens_per_word=per_word)))
        loads = [replace(load, most_seconds=most) for load, most in zip(benches[0].loads, given.most_seconds, strict=True)]
        with progress_bar() as progress:
            for repeat in range(given.repeats):
                for load in loads:
                    turn = repeat % len(benches)
                    for bench in (*benches[turn:], *benches[:turn]):
                        bench.run(load, repeat, progress)
                results = [result_of(bench, versions) for bench in benches]
                if given.folder is not None:
                    given.folder.mkdir(parents=True, exist_ok=True)
                    for result in results:
                        write(result, given.folder / f"agentic_{given.model}_{result.label}.json")
    for result in results:
        table = rows(result, given.floor)
        print(f"\n{result.label} {versions.get(result.label, '')}\n\n{markdown(table)}") if given.markdown else Console(width=240).print(
            aligned(result.label, table)
        )
    if given.plot is not None:
        draw(results, given.plot, given.floor)


def result_of(bench: Agentic, versions: Mapping[str, str]) -> Result:
    """With a peer's version."""
    result = bench.result()
    release = versions.get(result.label)
    return result if release is None else msgspec.structs.replace(result, machine={**result.machine, result.label: release})


def started(peer: str, program: Path, weights: Weights, port: int, users: int, context: int) -> tuple[list[str], dict[str, str], str]:
    """A peer's command and environment, and its version."""
    if peer == "llama-cpp":
        server, release = llama_server.find(program)
        return [*llama_server.command(server, weights.gguf, port, users, context, THREADS)], {}, release
    assert weights.checkpoint is not None
    environment = dict(vllm_server.environment(program, THREADS))
    return [*vllm_server.command(program, weights.checkpoint, port, users, context)], environment, vllm_server.version(program)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["gemma", "smollm2"], default="gemma")
    parser.add_argument("--peers", default="", metavar="NAME=PROGRAM,...")
    parser.add_argument("--concurrency", default="1,2,4,8,16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument(
        "--most-seconds", default="inf", metavar="N,...", help="of a run, over then whatever is under way; of each load, or of all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=4608, help="of each server; conversations end before")
    parser.add_argument("--floor", type=float, default=10.0, help="tokens a second of a user, for goodput")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--ours", action="append", metavar="LABEL=OPTIONS", help="of `tsrun serve`, may be repeated [default: tsrun=]")
    parser.add_argument("--weights", type=Path, default=default_folder())
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few and short sessions, to see that everything runs")
    given = parser.parse_args()
    given.ours = given.ours or ["tsrun="]
    given.concurrency = tuple(map(int, given.concurrency.split(",")))
    given.most_seconds = tuple(map(float, given.most_seconds.split(",")))
    if len(given.most_seconds) == 1:
        given.most_seconds *= len(given.concurrency)
    if len(given.most_seconds) != len(given.concurrency) or min(given.repeats, given.sessions, *given.concurrency) < 1:
        parser.error("--most-seconds has a number for each of --concurrency, or one for all; users, sessions and repeats are 1 and more")
    given.peers = {name: Path(program) for name, _, program in (one.partition("=") for one in given.peers.split(",") if one)}
    if unknown := set(given.peers) - {"llama-cpp", "vllm"}:
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; there are llama-cpp and vllm")
    if given.quick:
        given.repeats, given.sessions = 1, 1
    return given


if __name__ == "__main__":
    main()

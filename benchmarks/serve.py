"""What HTTP and tokenization take beside the engine, ours and the SMG gateway's.

usage: python benchmarks/serve.py NAME.tsa [--streams 32] [--tokens 200] [--rounds 5] [--threads N] [--http-processes N] [--smg]
                                  [--speculate off] [--markdown]

Starts `tsrun serve` and reads as many streams of chat completions at once as it is told, each to its end. Says, each round, the tokens
a second of all streams, what the front end's processes took of a core for each 1,000 streamed tokens a second (their own CPU time,
user and system, from /proc; the engine is another process), how long after the end of its step a token was on its way to the client (from
the server's own histogram `tsrun:delivery_seconds`: the bound of the bucket that holds the 50th and 99th of 100), and how evenly tokens
came: the 99th of 100 of the times between two pieces of a stream, as the client sees them, over their median. The client is this process.

--smg: beside it a worker of the gateway (`tsrun serve --grpc`) with the `smg` wheel in front, on the same artifact, taking turns; its front
end is two processes, the gateway and the worker's. `pip install '.[test]'` has the wheel.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

_READY = re.compile(r" at (\w+://[^\s,]+)(?: \(metrics at \S+\))?, ready in")
_BUCKET = re.compile(r'^tsrun:delivery_seconds_bucket{le="([^"]+)",[^}]*} (\S+)$', re.MULTILINE)
_PROMPT = "Write a long story about a lighthouse keeper who counts ships, number {}."
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Contender:
    """What takes requests at an address. pids: by name, the processes that are not the engine."""

    name: str
    model: str
    host: str
    port: int
    pids: dict[str, int]
    has_histogram: bool = False


@dataclass(frozen=True)
class Round:
    """cpu: percent of a core for 1,000 tokens a second, by process; p50, p99: delay in ms; uneven: of the times between pieces, the 99th
    of 100 over the median."""

    rate: float
    cpu: dict[str, float]
    p50: float | None
    p99: float | None
    uneven: float

    @property
    def whole(self) -> float:
        return sum(self.cpu.values())


@contextmanager
def ours(artifact: str, streams: int, threads: int | None, *options: str) -> Iterator[tuple[int, str]]:
    """`tsrun serve`: its process and its address."""
    command = [sys.executable, "-m", "tsrun", "serve", artifact, "--port", "0", "--max-sequences", str(streams), *options]
    command += [] if threads is None else ["--threads", str(threads)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        ready = None
        while ready is None:
            ready = _READY.search(server.stderr.readline() or sys.exit("tsrun serve did not start"))
        yield server.pid, ready[1]
    finally:
        server.terminate()
        server.wait()


@contextmanager
def smg(worker: str, model: str) -> Iterator[tuple[int, str, int]]:
    """The gateway in front of a worker: its process, host and port."""
    ports = free_ports(2)
    command = [sys.executable, "-m", "smg.launch_router", "--host", "127.0.0.1", "--port", str(ports[0]), "--worker-urls", worker]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports[1]), "--shutdown-grace-period-secs", "1"]
    with tempfile.TemporaryFile() as log:
        gateway = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            ends = time.monotonic() + _START_SECONDS
            while not is_up(f"http://127.0.0.1:{ports[0]}", model):
                if time.monotonic() > ends or gateway.poll() is not None:
                    sys.exit("the gateway did not start")
                time.sleep(0.2)
            yield gateway.pid, "127.0.0.1", ports[0]
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway.wait()


def is_up(url: str, model: str) -> bool:
    """Whether it answers a question: it does not before it has the worker's tokenizer."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


async def stream(contender: Contender, number: int, tokens: int) -> list[float]:
    """Read one answer to its end; when each of its pieces of text came."""
    body = json.dumps(
        {
            "model": contender.model,
            "messages": [{"role": "user", "content": _PROMPT.format(number)}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    host = f"{contender.host}:{contender.port}"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection(contender.host, contender.port)
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    if b" 200 " not in (status := await reader.readline()):
        sys.exit(f"{status.decode().strip()}: {(await reader.read()).decode().splitlines()[-1]}")
    times: list[float] = []
    while data := await reader.read(65536):
        times += [time.perf_counter()] * data.count(b'"content":')
    writer.close()
    return times


async def get(host: str, port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text


def cpu_seconds(pid: int) -> float:
    """Of the server's first process and of the others that speak HTTP."""
    others = [int(other) for other in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    front = [pid, *(other for other in others if b"http_process" in Path(f"/proc/{other}/cmdline").read_bytes())]
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in front]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


async def buckets(contender: Contender) -> dict[float, float]:
    if not contender.has_histogram:
        return {}
    return {float(bound): float(count) for bound, count in _BUCKET.findall(await get(contender.host, contender.port, "/metrics"))}


def share(before: dict[float, float], after: dict[float, float], part: float) -> float | None:
    """The bound, in ms, of the bucket in which so much of what came between lies."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    return next((1000 * bound for bound, count in sorted(counts.items()) if count >= part * counts[max(counts)]), None)


async def measure(contender: Contender, streams: int, tokens: int) -> Round:
    before, began = await buckets(contender), time.perf_counter()
    cpu = {name: cpu_seconds(pid) for name, pid in contender.pids.items()}
    times = await asyncio.gather(*(stream(contender, number, tokens) for number in range(streams)))
    seconds = time.perf_counter() - began
    taken = {name: cpu_seconds(pid) - cpu[name] for name, pid in contender.pids.items()}
    after = await buckets(contender)
    count = streams * tokens
    gaps = sorted(second - first for pieces in times for first, second in pairwise(pieces))
    return Round(
        rate=count / seconds,
        cpu={name: 100 * each / count * 1000 for name, each in taken.items()},
        p50=share(before, after, 0.5),
        p99=share(before, after, 0.99),
        uneven=gaps[int(0.99 * len(gaps))] / max(1e-9, statistics.median(gaps)),
    )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def row(name: str, rounds: list[Round], first: list[Round]) -> list[str]:
    parts = ", ".join(f"{part} {statistics.median(one.cpu[part] for one in rounds):.3g}" for part in rounds[0].cpu)
    delays = [spread([value for one in rounds if (value := getattr(one, which)) is not None] or [0.0]) for which in ("p50", "p99")]
    delays = delays if rounds[0].p50 is not None else ["", ""]
    ratio = "" if rounds is first else spread([theirs.whole / mine.whole for mine, theirs in zip(first, rounds, strict=True)])
    return [
        name,
        spread([one.rate for one in rounds]),
        spread([one.whole for one in rounds]),
        parts,
        ratio,
        *delays,
        spread([one.uneven for one in rounds]),
    ]


COLUMNS = [
    "front end",
    "tokens/s",
    "% of a core per 1,000 tokens/s",
    "of it",
    "times ours",
    "p50 delay, ms at most",
    "p99",
    "p99 gap / median",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--threads", type=int, help="of the engine; by default all cores, which the front end then shares")
    parser.add_argument("--http-processes", type=int, default=1)
    parser.add_argument("--speculate", default="lookup", help="off: a token a step, so that each is a piece of its stream")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smg", action="store_true", help="beside the gateway")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        pid, url = stack.enter_context(
            ours(
                options.artifact,
                options.streams,
                options.threads,
                *("--http-processes", str(options.http_processes), "--speculate", options.speculate),
            )
        )
        at = urlsplit(url)
        contenders = [Contender("tsrun", Path(options.artifact).stem, str(at.hostname), at.port or 0, {"tsrun": pid}, has_histogram=True)]
        if options.smg:
            worker, worker_url = stack.enter_context(
                ours(options.artifact, options.streams, options.threads, "--grpc", "--speculate", options.speculate)
            )
            gateway, host, port = stack.enter_context(smg(worker_url, Path(options.artifact).stem))
            contenders.append(Contender("SMG", Path(options.artifact).stem, host, port, {"gateway": gateway, "worker": worker}))
        rounds: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
        for number in range(options.rounds + 1):
            for contender in contenders if number % 2 else reversed(contenders):
                found = asyncio.run(measure(contender, options.streams, options.tokens))
                if number:  # the first one warms up
                    rounds[contender.name].append(found)
                    print(f"{contender.name}: {found.rate:.0f} tokens/s, {found.whole:.1f} % of a core per 1,000", file=sys.stderr)
    table = [COLUMNS, *(row(name, found, rounds[contenders[0].name]) for name, found in rounds.items())]
    if options.markdown:
        table.insert(1, ["---", *["---:"] * (len(COLUMNS) - 1)])
    for cells in table:
        print("| " + " | ".join(cells) + " |" if options.markdown else "   ".join(cells))


if __name__ == "__main__":
    main()

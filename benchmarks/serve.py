"""What HTTP and tokenization take beside the engine: `python benchmarks/serve.py NAME.tsa [--streams 32] [--tokens 200] [--rounds 5]`.

Starts `tsrun serve` and reads as many streams of chat completions at once as it is told, each to its end. Prints, each round, the tokens
a second of all streams, what the front end's processes took of a core for each 1,000 streamed tokens a second (their own CPU time, user
and system, from /proc; the engine is another process), and how long after the end of its step a token was on its way to the client (from
the server's own histogram `tsrun:delivery_seconds`: the bound of the bucket that holds the 50th and 99th of 100). The client is this
process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

_READY = re.compile(r" at http://([^:]+):(\d+), ready in")
_BUCKET = re.compile(r'^tsrun:delivery_seconds_bucket{le="([^"]+)",[^}]*} (\S+)$', re.MULTILINE)
_PROMPT = "Write a long story about a lighthouse keeper who counts ships, number {}."


async def stream(host: str, port: int, number: int, tokens: int) -> int:
    """Read one answer to its end; the number of chunks that had text."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": _PROMPT.format(number)}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    count = 0
    if b" 200 " not in (status := await reader.readline()):
        sys.exit(f"{status.decode().strip()}: {(await reader.read()).decode().splitlines()[-1]}")
    while data := await reader.read(65536):
        count += data.count(b'"content":')
    writer.close()
    return count


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


async def buckets(host: str, port: int) -> dict[float, float]:
    return {float(bound): float(count) for bound, count in _BUCKET.findall(await get(host, port, "/metrics"))}


def share(before: dict[float, float], after: dict[float, float], part: float) -> float:
    """The bound of the bucket in which so much of what came between lies."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    return next(bound for bound, count in sorted(counts.items()) if count >= part * counts[max(counts)])


async def measure(host: str, port: int, pid: int, streams: int, tokens: int) -> tuple[float, float, float, float]:
    """Tokens a second, percent of a core for 1,000 of them, and the delay in ms of the 50th and 99th of 100."""
    before, cpu, began = await buckets(host, port), cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(stream(host, port, number, tokens) for number in range(streams)))
    seconds, taken = time.perf_counter() - began, cpu_seconds(pid) - cpu
    after = await buckets(host, port)
    count = streams * tokens
    return count / seconds, 100 * taken / count * 1000, 1000 * share(before, after, 0.5), 1000 * share(before, after, 0.99)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("--threads", type=int, help="of the engine; by default all cores, which the front end then shares")
    parser.add_argument("--http-processes", type=int)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    command = [sys.executable, "-m", "tsrun", "serve", options.artifact, "--port", "0", "--max-sequences", str(options.streams)]
    command += [] if options.threads is None else ["--threads", str(options.threads)]
    command += [] if options.http_processes is None else ["--http-processes", str(options.http_processes)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        ready = None
        while ready is None:
            line = server.stderr.readline() or sys.exit("the server did not start")
            ready = _READY.search(line)
        host, port = ready[1], int(ready[2])
        rounds: list[tuple[float, float, float, float]] = []
        for number in range(options.rounds + 1):
            found: tuple[float, float, float, float] = asyncio.run(measure(host, port, server.pid, options.streams, options.tokens))
            if number:  # the first one warms up
                rounds.append(found)
                print(f"{found[0]:8.0f} tokens/s   {found[1]:5.1f} % of a core per 1,000   p50 {found[2]:g} ms   p99 {found[3]:g} ms")
        for name, place in (
            ("tokens/s", 0),
            ("% of a core per 1,000 tokens/s", 1),
            ("p50 delay, ms at most", 2),
            ("p99 delay, ms at most", 3),
        ):
            values: list[float] = [one[place] for one in rounds]
            print(f"{name}: median {statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

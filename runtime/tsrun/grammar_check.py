"""Tries a grammar in a process of its own, which may be killed or crash: who sends one may mean harm.

The process reads one JSON line a grammar and answers with one: null, or what is wrong. It compiles the grammar as the engine will, on a
smaller stack, and finds out what may come first. An object `{"gbnf": text}` is a grammar to translate: `{"lark": text}`, or what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

_START_SECONDS = 60.0
_CHECK_SECONDS = 2.5  # the engine then takes as long again: five seconds in all
_STACK_BYTES = 2**22  # half of what a thread has


class GrammarCheck:
    """The process, started when it is first needed, and again where it ended. For one thread at a time."""

    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact
        self._process: subprocess.Popen[bytes] | None = None

    def error(self, grammar: str) -> str | None:
        """What is wrong with a grammar, None when nothing is."""
        found: str | None = self._ask(grammar)
        return found

    def lark(self, gbnf: str) -> str:
        """The same grammar in Lark; ValueError says what is wrong with it."""
        found = self._ask({"gbnf": gbnf})
        if isinstance(found, str):
            raise ValueError(found)
        text: str = found["lark"]
        return text

    def _ask(self, question: object) -> Any:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            answer = _line(process, _CHECK_SECONDS)
        except (BrokenPipeError, EOFError):
            self.close()
            return "it is nested too deeply, or too large, to be compiled"
        except TimeoutError:
            self.close()
            return f"it takes more than {_CHECK_SECONDS} seconds to compile"
        return json.loads(answer)

    def close(self) -> None:
        """End the process, whatever it is doing. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # of what it did not read
                process.stdin.close()
            process.stdout.close()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tsrun.grammar_check", str(self._artifact)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        _line(self._process, _START_SECONDS)
        return self._process


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of the process. EOFError when it ended instead, TimeoutError when it did not say so in time."""
    assert process.stdout is not None
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        read = os.read(process.stdout.fileno(), 2**16)
        if not read:
            raise EOFError
        line += read
    return line


def _serve(artifact: Path) -> None:
    import numpy as np

    from tsrun.artifact import read_manifest
    from tsrun.grammar_compiler import compiled, grammar_tokens
    from tsrun.tokenizer import Tokenizer

    manifest = read_manifest(artifact)
    tokens = grammar_tokens(Tokenizer(artifact / "tokenizer"), manifest.vocabulary, manifest.eos_token_ids)
    mask = np.zeros(-(-tokens.vocab_size // 32), dtype=np.uint32)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        if isinstance(question, dict):
            print(json.dumps(_translated(question["gbnf"])), flush=True)
            continue
        matcher = compiled(tokens, question)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        print(json.dumps(matcher.get_error() or None), flush=True)


def _translated(gbnf: str) -> dict[str, str] | str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return {"lark": gbnf_to_lark(gbnf)}
    except Exception as error:  # the library raises bare Exception
        return str(error)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; this one ends with its standard input
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(Path(sys.argv[1]),))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()

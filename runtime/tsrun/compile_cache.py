"""Compiled checkpoints kept by key. An entry appears whole or not at all, also when several processes want it at once.

ROOT/entries/NAME/{key.json, model.tsa/}   ROOT/unfinished/   ROOT/locks/NAME   ROOT/digests.json   ROOT/kernels/

In `kernels` are functions for GPUs, which `tsc compile` keeps there, each by its key, and their resource records.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tskernels.cache_folder import cache_folder
from tsrun.artifact import open_artifact
from tsrun.cache_key import entry_name, key_parts, miss_line
from tsrun.checkpoint_identity import checkpoint_digest
from tsrun.errors import ArtifactError, CacheError, CompilerError

_TARGET = "cpu"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished compilation."""

    folder: Path
    parts: dict[str, str]
    checkpoint: str

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def artifact(self) -> Path:
        return self.folder / "model.tsa"

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    @property
    def last_used(self) -> float:
        return (self.folder / "key.json").stat().st_mtime


class CompileCache:
    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder()

    def obtain(
        self, checkpoint: Path, *, mesh: str | None, dtype: str | None, say: Say, entry: str | None = None, context: int | None = None
    ) -> Path:
        """The artifact of a checkpoint, compiled now if there is none; `say` hears why. entry: of its model file, None for the first;
        context: the longest sequence, which some rope scalings depend on."""
        identity = checkpoint_digest(checkpoint, self.root / "digests.json")
        asked = {"--mesh": mesh, "--dtype": dtype, "--entry": entry, "--context": None if context is None else str(context)}
        options = _words(checkpoint, asked)
        compiler = _compiler_parts(options)
        if compiler.get("context") != asked["--context"]:  # the model is the same for any
            options = _words(checkpoint, asked | {"--context": None})
        parts = key_parts(compiler, checkpoint=identity, mesh=mesh, dtype=dtype, target=_TARGET)
        name = entry_name(parts)
        found = self.entry(name)
        if found is None:
            with self._lock(name, wait=lambda: say("compile cache: another process is compiling this, waiting")):
                found = self.entry(name)
                if found is None:
                    say(miss_line(parts, [other.parts for other in self.entries()]) + "; compiling")
                    found = self._compile(name, parts, checkpoint, options)
        os.utime(found.folder / "key.json")
        return found.artifact

    def entry(self, name: str) -> Entry | None:
        """The entry of that name, if it is there."""
        folder = self.root / "entries" / name
        try:
            record = json.loads((folder / "key.json").read_text())
            return Entry(folder, dict(record["parts"]), str(record["checkpoint"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def entries(self) -> list[Entry]:
        """Every entry, the one used last first."""
        folders = (self.root / "entries").glob("*")
        found = [entry for folder in folders if (entry := self.entry(folder.name)) is not None]
        return sorted(found, key=lambda entry: -entry.last_used)

    def kernel_files(self) -> list[Path]:
        """Of functions for GPUs."""
        return sorted((self.root / "kernels").glob("*"))

    def find(self, prefix: str) -> Entry:
        """The one entry whose name begins so."""
        found = [entry for entry in self.entries() if entry.name.startswith(prefix)]
        if len(found) != 1:
            raise CacheError(prefix, f"names {len(found)} entries of {self.root}", "give a longer part of a name from `tsrun cache ls`")
        return found[0]

    def export(self, prefix: str, target: Path) -> None:
        """Copy an entry's artifact to a path that does not exist yet; it appears there whole."""
        entry = self.find(prefix)
        if target.exists():
            raise CacheError(str(target), "exists", "give another path or remove it")
        open_artifact(entry.artifact)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tsrun-export-") as folder:
            shutil.copytree(entry.artifact, Path(folder, "model.tsa"))
            os.rename(Path(folder, "model.tsa"), target)

    def prune(self, *, older_than_days: float | None, everything: bool) -> list[str]:
        """Remove what is unfinished or damaged, and entries not used for so long; return what was removed, in words."""
        removed = []
        for folder in (self.root / "unfinished").glob("*"):
            # A compilation under way holds the lock of its name.
            with contextlib.suppress(BlockingIOError), self._lock(folder.name.split(".")[0], wait=None):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(f"{folder.name}: unfinished")
        for folder in (self.root / "entries").glob("*"):
            reason = self._reason_to_remove(folder, older_than_days, everything)
            if reason is not None:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(f"{folder.name}: {reason}")
        for file in self.kernel_files():
            days = (time.time() - file.stat().st_mtime) / 86400
            if everything or (older_than_days is not None and days > older_than_days):
                file.unlink(missing_ok=True)
                removed.append(f"{file.name[:12]}{file.suffix}: {'asked for' if everything else f'compiled {days:.1f} days ago'}")
        return removed

    def _reason_to_remove(self, folder: Path, older_than_days: float | None, everything: bool) -> str | None:
        entry = self.entry(folder.name)
        if everything:
            return "asked for"
        if entry is None:
            return "damaged (key.json)"
        if older_than_days is not None and time.time() - entry.last_used > older_than_days * 86400:
            return f"not used for {(time.time() - entry.last_used) / 86400:.1f} days"
        try:
            open_artifact(entry.artifact)
        except ArtifactError as error:
            return f"damaged ({error.line})"
        return None

    def _compile(self, name: str, parts: dict[str, str], checkpoint: Path, options: list[str]) -> Entry:
        unfinished = self.root / "unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        (self.root / "entries").mkdir(parents=True, exist_ok=True)
        # Not under entries: nobody must see it before the rename.
        folder = Path(tempfile.mkdtemp(dir=unfinished, prefix=f"{name}."))
        try:
            command = [sys.executable, "-m", "tsc", "compile", *options, "-o", str(folder / "model.tsa")]
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode
            if code:
                raise _failed(code)
            open_artifact(folder / "model.tsa")
            (folder / "key.json").write_text(json.dumps({"parts": parts, "checkpoint": checkpoint.name}, indent=1))
            target = self.root / "entries" / name
            shutil.rmtree(target, ignore_errors=True)  # one without a readable key.json, or it would have been found
            os.rename(folder, target)
            return Entry(target, parts, checkpoint.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: Callable[[], None] | None) -> Iterator[None]:
        """Hold a name's lock, which ends with the process. `wait` is called before waiting; None raises instead."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise
                wait()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _words(checkpoint: Path, asked: Mapping[str, str | None]) -> list[str]:
    """Of the compiler's command line."""
    return ["--weights", str(checkpoint), *(word for name, value in asked.items() if value for word in (name, value))]


def _compiler_parts(options: list[str]) -> dict[str, str]:
    """What the compiler contributes to the key: its version, and digests of the model file and the config it would use."""
    command = [sys.executable, "-m", "tsc", "compile", *options, "--key"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise _failed(done.returncode)
    try:
        return {str(name): str(value) for name, value in json.loads(done.stdout).items()}
    except (ValueError, AttributeError):
        raise CompilerError("tsc compile --key", "printed no JSON object", "install `tsc` and `tsrun` from one release") from None


def _failed(code: int) -> CompilerError:
    error = CompilerError("tsc compile", f"ended with exit code {code}", "its reason is printed above")
    if code in (2, 3):
        error.exit_code = code
    return error

"""Write an artifact: everything goes to a sibling directory, which takes the artifact's place only when it is whole."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from tsc.artifact.hashed_file import HashedFile
from tsc.artifact.readable_json import dumps
from tsc.artifact.replace import replace_directory, sync_directory
from tsc.artifact.stream import SafetensorsStream
from tsc.checkpoint import TensorInfo
from tsc.diagnostics import CompileError, Diagnostic, MissingCapability

FORMAT = "tsa/2"
_MANIFEST = "manifest.json"
_JUST_MADE = 60.0
"""Seconds in which a folder may be there and not yet be claimed."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArtifactWriter:
    """Use in `with`. Leaving it normally after `finish` replaces `path`; leaving it otherwise leaves no trace, and an old artifact whole.

    CompileError when something other than an artifact is at `path`; MissingCapability when the disk is full or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(os.path.abspath(path))
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        self._files: dict[str, HashedFile] = {}
        self._streams: list[SafetensorsStream] = []
        self._finished = False
        self._claim: int | None = None

    def __enter__(self) -> Self:
        self._refuse_to_replace_others()
        try:
            self._temporary.mkdir()
            self._claim = _claimed(self._temporary)
        except OSError as error:
            raise MissingCapability(f"{self.path}: cannot be written: {error.strerror} ({self.path.parent})") from None
        self._remove_abandoned()
        return self

    def write_json(self, name: str, value: Any) -> None:
        """A file of readable JSON: deterministic, keys in the order given."""
        self.write_bytes(name, dumps(value).encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """A file under `name`, a relative path with `/`."""
        file = HashedFile(self._place(name))
        self._files[name] = file
        file.write(data)
        file.close()

    def weights(self, rank_count: int, layouts: Sequence[Mapping[str, TensorInfo]]) -> tuple[SafetensorsStream, ...]:
        """One stream a rank, open at the same time; `layouts[rank]` lists its tensors in the order in which they will be appended."""
        if len(layouts) != rank_count:
            raise ValueError(f"{rank_count} ranks have {len(layouts)} layouts")
        for rank, layout in enumerate(layouts):
            name = f"weights/rank-{rank:05}.safetensors"
            stream = SafetensorsStream(self._place(name), layout)
            self._files[name] = stream.file
            self._streams.append(stream)
        return tuple(self._streams[-rank_count:]) if rank_count else ()

    def finish(self, manifest_fields: Mapping[str, Any]) -> dict[str, Any]:
        """Close all files and write the manifest, which is returned: `format`, the given fields, then `files`.

        ValueError when a stream misses tensors.
        """
        for stream in self._streams:
            stream.close()
        files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sorted(self._files.items())}
        manifest = {"format": FORMAT, **manifest_fields, "files": files}
        self.write_json(_MANIFEST, manifest)
        for directory in {self._temporary, *(file.path.parent for file in self._files.values())}:
            sync_directory(directory)
        self._finished = True
        return manifest

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                assert self._finished, "an artifact without `finish` has no manifest"
                self._refuse_to_replace_others()
                replace_directory(self._temporary, self.path)
        except OSError as late:
            error = late
        finally:
            for file in self._files.values():
                file.abandon()
            shutil.rmtree(self._temporary, ignore_errors=True)
            if self._claim is not None:
                os.close(self._claim)
        if isinstance(error, OSError) and (error.errno in _FULL or kind is None):
            raise MissingCapability(self._excuse(error)) from None

    def _remove_abandoned(self) -> None:
        """Take away what writers of this artifact left that were killed: nobody holds it any more."""
        for other in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.partial"):
            try:
                if other != self._temporary and time.time() - other.stat().st_mtime > _JUST_MADE:
                    claim = _claimed(other)
                    if claim is not None:
                        shutil.rmtree(other, ignore_errors=True)
                        os.close(claim)
            except OSError:  # it went meanwhile, or is not ours to look at
                continue

    def _place(self, name: str) -> Path:
        relative = PurePosixPath(name)
        assert not {"/", ".."} & set(relative.parts), name
        place = self._temporary / relative
        place.parent.mkdir(exist_ok=True)
        return place

    def _excuse(self, error: OSError) -> str:
        why = "the disk is full" if error.errno in _FULL else "it cannot be written"
        left = "the artifact that was there is untouched" if self.path.exists() else "nothing is left of it"
        return f"{self.path}: {why} ({error.strerror}); {left}"

    def _refuse_to_replace_others(self) -> None:
        if os.path.lexists(self.path) and not _is_artifact(self.path):
            what = f"{self.path}: is there already and is no artifact; it is not replaced"
            raise CompileError(Diagnostic("TS0720", what, fixes=("choose another name, or remove it",)))


def _claimed(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed, by the end of the process at the latest; None where another one holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system that has no locks
        os.close(descriptor)
        return None
    return descriptor


def _is_artifact(path: Path) -> bool:
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return not path.is_symlink() and isinstance(manifest, dict) and str(manifest.get("format", "")).startswith("tsa/")

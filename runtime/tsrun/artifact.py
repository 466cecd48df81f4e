"""Opens NAME.tsa: reads the manifest and refuses an artifact that is not byte for byte what the compiler wrote."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsrun.digests import DigestMemory, Progress, file_digests
from tsrun.errors import ArtifactError

FORMAT = "tsa/2"
MANIFEST = "manifest.json"
PROGRAM = "program.json"
GUESSED_TOKENS = "guessed_tokens.i32"
_AGAIN = "compile it again with `tsc compile`"


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bytes: int
    sha256: str


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    architecture: str
    source: str
    source_sha256: str
    config_sha256: str


class TuningEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements that chose the kernels of so many distinct calls."""

    sha256: str
    calls: int


class ImportanceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What weights were rounded by: a file, measured on so many tokens of a text."""

    sha256: str
    text_sha256: str
    tokens: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """manifest.json as docs/architecture.md gives it. embedding: how many numbers one has, where the model gives embeddings;
    drafter: the entry that guesses one token further."""

    format: str
    tsc: str
    model: ModelEntry
    axes: list[tuple[str, int]]
    ranks: int
    target: str
    dtype: str
    vocabulary: int
    context: int | None
    eos_token_ids: list[int]
    bos_token_id: int | None
    weightless: bool
    files: dict[str, FileEntry]
    gives: Literal["logits", "tokens", "embeddings"] = "logits"
    embedding: int | None = None
    quantization: dict[str, int] | None = None
    importance: ImportanceEntry | None = None
    tuning: TuningEntry | None = None
    cache: Literal["dtype", "int8", "fp8"] = "dtype"
    drafter: str | None = None


class _Format(msgspec.Struct):
    """Only the version, read first: a newer format may have fields that this reader does not know."""

    format: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact. Its files have been verified, as far as `open_artifact` was told to."""

    path: Path
    manifest: Manifest

    @property
    def namespace(self) -> int:
        """64 bits that two artifacts share when their caches hold the same for the same tokens: of model, config, weights and how
        keys and values are stored."""
        model = self.manifest.model
        weights = [self.manifest.files[name].sha256 for name in sorted(self.manifest.files) if name.startswith("weights/")]
        digests = "\n".join([model.source_sha256, model.config_sha256, self.manifest.dtype, self.manifest.cache, *weights])
        return int.from_bytes(hashlib.blake2b(digests.encode(), digest_size=8).digest(), "little")

    def file(self, name: str) -> Path:
        return self.path / name

    def weights_file(self, rank: int) -> Path:
        return self.path / weights_name(rank)

    def guessed_tokens(self) -> NDArray[np.int32] | None:
        """The model's token for each that its entry for drafts guesses; None where that has the model's."""
        if GUESSED_TOKENS not in self.manifest.files:
            return None
        return np.fromfile(self.file(GUESSED_TOKENS), dtype="<i4").astype(np.int32)

    @property
    def has_tokenizer(self) -> bool:
        return "tokenizer/tokenizer.json" in self.manifest.files

    def require_weights(self) -> None:
        """Refuse a weightless artifact, for whoever is about to run it."""
        if self.manifest.weightless:
            what = "the artifact is weightless: it holds the program and no weights"
            raise ArtifactError(str(self.path), what, "compile it with weights: `tsc compile --weights DIR|FILE -o NAME.tsa`")


def weights_name(rank: int) -> str:
    return f"weights/rank-{rank:05d}.safetensors"


def is_artifact(path: Path) -> bool:
    """Whether a path is meant as an artifact, rather than as a checkpoint: by its name or by its manifest."""
    return path.suffix == ".tsa" or (path / MANIFEST).is_file()


def open_artifact(path: Path, *, rank: int | None = None, progress: Progress | None = None, memory: DigestMemory | None = None) -> Artifact:
    """Open and verify an artifact.

    Every file's presence and size is checked, then its digest. With `rank`, weights of other ranks are left to those
    ranks: together the ranks verify everything once. With `memory`, files that it knows as the manifest has them are not read again.
    `progress` is called with bytes read and bytes to read in all.
    """
    manifest = read_manifest(path)
    _check_presence(path, manifest)
    others = set() if rank is None else {weights_name(r) for r in range(manifest.ranks) if r != rank}
    files = {path / name: entry.sha256 for name, entry in sorted(manifest.files.items()) if name not in others}
    found = file_digests(list(files), progress) if memory is None else memory.digests(list(files), progress, wanted=files)
    with contextlib.closing(found):
        for file, digest in found:
            if digest != files[file]:
                raise ArtifactError(str(file), "edited: its digest is not the manifest's", "copy the artifact again, or " + _AGAIN)
    return Artifact(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of an artifact alone; nothing that it lists is looked at."""
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise ArtifactError(str(path), what, "give the path of a NAME.tsa directory")
    file = path / MANIFEST
    manifest = _parse_manifest(file)
    _check_manifest(file, manifest)
    return manifest


def _parse_manifest(file: Path) -> Manifest:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(str(file), "missing: this is not an artifact", "give the path of a NAME.tsa directory") from None
    except OSError as error:
        raise ArtifactError(str(file), f"can not be read ({error.strerror})") from None
    try:
        version = msgspec.json.decode(data, type=_Format).format
    except msgspec.DecodeError as error:
        raise ArtifactError(str(file), f"is not the manifest of an artifact ({error})", _AGAIN) from None
    if version != FORMAT:
        what = f"has format {version!r}, this tsrun reads {FORMAT!r}"
        raise ArtifactError(str(file), what, "compile it again with the `tsc` of this installation")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(str(file), f"is damaged or from another tsc ({error})", _AGAIN) from None


def _check_manifest(file: Path, manifest: Manifest) -> None:
    sizes = [size for _, size in manifest.axes]
    if manifest.ranks < 1 or any(size < 1 for size in sizes) or math.prod(sizes) != manifest.ranks:
        raise ArtifactError(str(file), f"{manifest.ranks} ranks do not fill the axes {manifest.axes}", _AGAIN)
    if PROGRAM not in manifest.files:
        raise ArtifactError(str(file), f"lists no {PROGRAM}", _AGAIN)
    if not manifest.weightless:
        for rank in range(manifest.ranks):
            if weights_name(rank) not in manifest.files:
                raise ArtifactError(str(file), f"lists no {weights_name(rank)}", _AGAIN)
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or str(PurePosixPath(*parts)) != name:
            raise ArtifactError(str(file), f"lists {name!r}, which is not a path inside the artifact", _AGAIN)


def _check_presence(path: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(str(file), "missing, though the manifest lists it", "copy the artifact again, or " + _AGAIN)
        size = file.stat().st_size
        if size != entry.bytes:
            how = "truncated" if size < entry.bytes else "grown"
            raise ArtifactError(str(file), f"{how}: {size} bytes, the manifest says {entry.bytes}", "copy the artifact again, or " + _AGAIN)
    for folder, _, files in os.walk(path):
        for found in files:
            file = Path(folder, found)
            name = file.relative_to(path).as_posix()
            if name != MANIFEST and name not in manifest.files:
                raise ArtifactError(str(file), "foreign: the manifest does not list it", "remove the file")

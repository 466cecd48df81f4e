"""Resource records of the kernels that were compiled on this machine, by target, kept beside the functions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from tskernels.cache_folder import cache_folder
from tskernels.gpu.functions import resources_of
from tskernels.gpu.launch import Resources
from tskernels.target import Target

Records = Mapping[str, Mapping[str, tuple[Resources, ...]]]
"""By target, then by op and kernel (`ts::rope triton`)."""


def _folder() -> Path:
    return cache_folder() / "kernels"


def keep_records(target: Target, compiled: Iterable[tuple[str, Resources]]) -> None:
    """Add what calls of kernels, by op and kernel, were compiled to."""
    found = {name: set(records) for name, records in _read(_folder() / f"records-{target}.json").items()}
    for name, resources in compiled:
        found.setdefault(name, set()).add(resources)
    listed = {name: [asdict(r) for r in sorted(records, key=lambda r: r.sha256)] for name, records in sorted(found.items())}
    temporary = _folder() / f".records-{target}.{os.getpid()}"
    temporary.write_text(json.dumps(listed))
    temporary.replace(_folder() / f"records-{target}.json")


def records() -> Records:
    """All that there are."""
    return {file.stem.removeprefix("records-"): _read(file) for file in sorted(_folder().glob("records-*.json"))}


def _read(file: Path) -> dict[str, tuple[Resources, ...]]:
    try:
        return {name: tuple(map(resources_of, found)) for name, found in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def summary(found: Iterable[Resources]) -> str:
    """The most that any takes; and the digest, where there is one."""
    all_ = list(found)
    most = {name: max(getattr(r, name) for r in all_) for name in ("registers", "shared", "tensor_columns", "stack")}
    text = f"{most['registers']} registers, {most['shared']:,} B shared"
    text += f", {most['tensor_columns']} tensor columns" if most["tensor_columns"] else ""
    text += f", {most['stack']} B stack" if most["stack"] else ""
    return f"{text}, {all_[0].sha256[:12] if len(all_) == 1 else f'{len(all_)} functions'}"

"""What `tsrun cache ls` and `tsrun cache verify` print."""

from __future__ import annotations

import json
import time

from tsrun.artifact import open_artifact
from tsrun.compile_cache import CompileCache
from tsrun.errors import ArtifactError, CacheError


def list_entries(as_json: bool) -> None:
    cache = CompileCache()
    entries = cache.entries()
    for entry in entries:
        if as_json:
            print(json.dumps({"name": entry.name, "checkpoint": entry.checkpoint, "bytes": entry.bytes, "parts": entry.parts}))
        else:
            asked = ", ".join(f"{name} {entry.parts.get(name, '?')}" for name in ("mesh", "dtype", "target", "tsc"))
            days = (time.time() - entry.last_used) / 86400
            print(f"{entry.name[:12]}  {entry.bytes / 1e6:9.1f} MB  {days:5.1f} days  {entry.checkpoint}  ({asked})")
    kernels = cache.kernel_files()
    if kernels and not as_json:
        functions, size = sum(file.suffix == ".bin" for file in kernels), sum(file.stat().st_size for file in kernels)
        print(f"{'kernels':12}  {size / 1e6:9.1f} MB  {functions} functions for GPUs")
    if not entries and not kernels and not as_json:
        print(f"no entries in {cache.root}")


def verify_entries(name: str | None) -> None:
    """Print a line an entry; CacheError at the end when one was damaged."""
    cache = CompileCache()
    damaged = 0
    for entry in [cache.find(name)] if name else cache.entries():
        try:
            open_artifact(entry.artifact)
            print(f"{entry.name[:12]}  good")
        except ArtifactError as error:
            damaged += 1
            print(f"{entry.name[:12]}  {error.line}")
    if damaged:
        raise CacheError(str(cache.root), f"{damaged} damaged entries", "`tsrun cache prune` removes them")

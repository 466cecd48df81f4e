"""Store caches in the layout that is asked for.

Guarantees: every cache of the program has it. Types and placements stay those of rows: a layout says how a rank stores its part.
Does not: choose a layout, or mix several. Raises CompileError, with the cache, where one can not be stored so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.diagnostics import CompileError, Diagnostic
from tsc.graph import Program, caches, row_of
from tskernels.cache_layouts import CACHE_LAYOUTS, FP8_CACHE


@dataclass(frozen=True, slots=True)
class StoreCaches:
    layout: str
    name: ClassVar[str] = "store-caches"

    def run(self, program: Program) -> Program:
        refused = [c for c in caches(program) if not CACHE_LAYOUTS[self.layout].takes(*row_of(program.mesh, c))]
        if refused:
            raise CompileError(self._refusal(program, refused[0]))
        for cache in caches(program):
            cache.meta["input"] = replace(cache.meta["input"], layout=self.layout)
        return program

    def _refusal(self, program: Program, cache: torch.fx.Node) -> Diagnostic:
        dtype, row = row_of(program.mesh, cache)
        kind = "a latent cache" if len(row) == 1 else "a cache"
        wanted = CACHE_LAYOUTS[self.layout].wanted
        text = f"`{cache.name}` is {kind}, {dtype}{list(row)} for a token, and the layout {self.layout} is for {wanted}"
        fixes = ["compile without --cache: it is then stored as --dtype"]
        if CACHE_LAYOUTS[FP8_CACHE].takes(dtype, row):
            fixes.insert(0, "compile with --cache fp8: it is then stored in a byte an element")
        return Diagnostic("TS0511", text, cache.meta["span"], fixes=tuple(fixes))

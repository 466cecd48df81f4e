"""The functions of the language by name.

A new function is an entry in a family's table (`tsc/functions/`), a reference kernel of the same name, and its rules in the docs.
"""

from __future__ import annotations

from collections.abc import Mapping

from tsc.functions import attention, contraction, dense, mixture, recurrent, rope, rows
from tsc.functions.common import Builtin, Mismatch, Typing
from tsc.functions.rows import COMPOSITES

__all__ = ["BUILTINS", "COMPOSITES", "Builtin", "Mismatch", "Typing"]

BUILTINS: Mapping[str, Builtin] = {
    **dense.FUNCTIONS,
    **contraction.FUNCTIONS,
    **rope.FUNCTIONS,
    **attention.FUNCTIONS,
    **mixture.FUNCTIONS,
    **recurrent.FUNCTIONS,
    **rows.FUNCTIONS,
}

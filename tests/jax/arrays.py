"""Torch's tensors as JAX's arrays, and kernels of the family `jax` run on them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from torch import Tensor

from tskernels.registry import load, lookup
from tskernels.target import JAX


def array(value: Any) -> Any:
    """Of a tensor; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return jnp.asarray(value.float().numpy()).astype(jnp.bfloat16) if value.dtype == torch.bfloat16 else jnp.asarray(value.numpy())


def tensor(value: Array) -> Tensor:
    if value.dtype == jnp.bfloat16:
        return torch.from_numpy(np.asarray(value.astype(jnp.float32)).copy()).bfloat16()
    return torch.from_numpy(np.asarray(value).copy())


def run_jax_kernel(op: str, *operands: Any, name: str = "xla", **attributes: Any) -> Any:
    """The result of an op's kernel, traced with 64-bit types as a step is; of one that writes an operand, that too."""
    load(JAX)
    function = lookup(op, name).function
    with jax.enable_x64(True):
        made = jax.jit(lambda given: function(*given, **attributes))([array(o) for o in operands])
        return tuple(map(tensor, made)) if isinstance(made, tuple) else tensor(made)

"""What XLA makes of the blocks of `plans.py`: jit with Shardy on four forced host devices, collectives read from the compiled HLO.

usage: python benchmarks/plans_jax.py BLOCK...    (prints JSON)

The weights are annotated as our model files declare them, inputs and results replicated; everything between is XLA's choice. Compiled from
shapes alone, in f32 because XLA's CPU backend widens bf16 collectives; bytes are counted at two a floating point element.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TOKENS = 8
D, HEADS, E, F, V = 4096, 32, 128, 14336, 128256
P = PartitionSpec
Spec = tuple[tuple[int, ...], PartitionSpec]


def norm(x: jax.Array, w: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * w


def attention(x: jax.Array, wq: jax.Array, wk: jax.Array, wv: jax.Array, wo: jax.Array) -> jax.Array:
    """Causal attention of one sequence. wq [D, HEADS*E], wk and wv [D, K*E], wo [HEADS*E, D]: flat, as checkpoints have them."""
    tokens, heads = x.shape[0], wk.shape[1] // E
    q = (x @ wq).reshape(tokens, heads, HEADS // heads, E)
    k = (x @ wk).reshape(tokens, heads, E)
    v = (x @ wv).reshape(tokens, heads, E)
    scores = jnp.einsum("tkge,ske->kgts", q, k) * E**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores, -jnp.inf)
    out = jnp.einsum("kgts,ske->tkge", jax.nn.softmax(scores, -1), v)
    return out.reshape(tokens, -1) @ wo


def mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


def layer(x: jax.Array, n1: jax.Array, n2: jax.Array, a: Sequence[jax.Array], m: Sequence[jax.Array]) -> jax.Array:
    h = x + attention(norm(x, n1), *a)
    return h + mlp(norm(h, n2), *m)


def parallel_layer(x: jax.Array, n: jax.Array, a: Sequence[jax.Array], m: Sequence[jax.Array]) -> jax.Array:
    y = norm(x, n)
    return x + (attention(y, *a) + mlp(y, *m))


def attention_weights(heads: int) -> list[Spec]:
    kv = (D, heads * E), P(None, "tp")
    return [((D, HEADS * E), P(None, "tp")), kv, kv, ((HEADS * E, D), P("tp", None))]


MLP = [((D, F), P(None, "tp")), ((D, F), P(None, "tp")), ((F, D), P("tp", None))]
X, N = ((TOKENS, D), P()), ((D,), P())

BLOCKS: Mapping[str, tuple[Callable[..., jax.Array], Sequence[object]]] = {
    "llama": (layer, [X, N, N, attention_weights(8), MLP]),
    "parallel": (parallel_layer, [X, N, attention_weights(8), MLP]),
    "few_heads": (layer, [X, N, N, attention_weights(2), MLP]),
    "embedding": (lambda ids, table: table[ids], [((TOKENS,), P()), ((V, D), P("tp", None))]),
}


def compiled_text(name: str, mesh: Mesh) -> str:
    """The HLO of a block after partitioning."""
    function, arguments = BLOCKS[name]

    def abstract(given: object) -> object:
        if isinstance(given, list):
            return [abstract(g) for g in given]
        shape, spec = given  # type: ignore[misc]
        dtype = jnp.int32 if len(shape) == 1 and name == "embedding" else jnp.float32
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    whole = NamedSharding(mesh, P())
    lowered = jax.jit(function, out_shardings=whole).lower(*(abstract(a) for a in arguments))
    return str(lowered.compile().as_text())


COLLECTIVE = re.compile(
    r"= (?P<result>\(?[^=]*?\)?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"(f32|s32|u32|pred|f64|bf16)\[([\d,]*)\]")


def collectives(text: str) -> tuple[dict[str, int], int]:
    """Kinds with their counts, and payload bytes of a step with floating point elements at two bytes."""
    kinds: Counter[str] = Counter()
    size = 0
    for line in text.splitlines():
        match = COLLECTIVE.search(line)
        if match is None:
            continue
        arrays = [
            (2 if kind in ("f32", "f64", "bf16") else 4) * int(np.prod([int(d) for d in dims.split(",") if d], dtype=np.int64))
            for kind, dims in ARRAY.findall(match["result"])
        ]
        kinds[match["kind"].replace("-", "_")] += 1
        size += sum(arrays) * (4 if match["kind"] == "reduce-scatter" else 1)
    return dict(kinds), size


def main(names: Sequence[str]) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("tp",))
    found = {}
    for name in names:
        kinds, size = collectives(compiled_text(name, mesh))
        found[name] = {"kinds": kinds, "bytes_per_token": size // TOKENS}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

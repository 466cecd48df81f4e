"""What XLA makes of the blocks of `plans.py`: jit with Shardy on four forced host devices, collectives read from the compiled HLO.

usage: python benchmarks/plans_jax.py BLOCK...    (prints JSON)

The weights are annotated as our model files declare them, inputs and results replicated (`_sharded`: split by tokens); everything
between is XLA's choice. Compiled from shapes alone, in f32 because XLA's CPU backend widens bf16 collectives; bytes are counted at two
a floating point element.
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

# --- mixtures and latent attention ---------------------------------------------------------------------------------


def mixture(x: jax.Array, router: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, top: int = 8) -> jax.Array:
    """Every expert on every token, weighed by its routing: what a compiler can partition. gate, up [N, F, D], down [N, D, F]."""
    scores = jax.nn.softmax(x @ router, -1)
    least = jax.lax.top_k(scores, top)[0][:, -1:]
    chosen = jnp.where(scores >= least, scores, 0.0)
    inner = jax.nn.silu(jnp.einsum("td,nfd->tnf", x, gate)) * jnp.einsum("td,nfd->tnf", x, up)
    return jnp.einsum("tn,tnf,ndf->td", chosen, inner, down)


def deepseek_mixture(x: jax.Array, n: jax.Array, router: jax.Array, experts: Sequence[jax.Array], shared: Sequence[jax.Array]) -> jax.Array:
    y = norm(x, n)
    return x + (mixture(y, router, *experts) + mlp(y, *shared))


def qwen_layer(
    x: jax.Array, n1: jax.Array, n2: jax.Array, a: Sequence[jax.Array], router: jax.Array, experts: Sequence[jax.Array]
) -> jax.Array:
    h = x + attention(norm(x, n1), *a)
    return h + mixture(norm(h, n2), router, *experts)


NOPE, ROPE, LATENT, QUERY = 128, 64, 512, 1536


def mla(x: jax.Array, n: jax.Array, qa: jax.Array, qb: jax.Array, kva: jax.Array, kvb: jax.Array, wo: jax.Array) -> jax.Array:
    """Causal latent attention of one sequence, projections absorbed, with the residual; norms and rope left out of the latents, which
    are whole on every device either way. qa [D, QUERY], qb [QUERY, H*(NOPE+ROPE)], kva [D, LATENT+ROPE], kvb [LATENT, H*2*NOPE]."""
    y = norm(x, n)
    q = (y @ qa @ qb).reshape(x.shape[0], -1, NOPE + ROPE)
    row = y @ kva
    both = kvb.reshape(LATENT, -1, 2 * NOPE)
    absorbed = jnp.einsum("tha,cha->thc", q[..., :NOPE], both[..., :NOPE])
    scores = jnp.einsum("thc,sc->hts", absorbed, row[:, :LATENT]) + jnp.einsum("thr,sr->hts", q[..., NOPE:], row[:, LATENT:])
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -jnp.inf)
    mixed = jnp.einsum("hts,sc->thc", jax.nn.softmax(scores, -1), row[:, :LATENT])
    return x + jnp.einsum("thc,che->the", mixed, both[..., NOPE:]).reshape(x.shape[0], -1) @ wo


def expert_weights(number: int, inner: int, width: int) -> list[Spec]:
    """Stacked, split over the experts."""
    wide = (number, inner, width), P("tp", None, None)
    return [wide, wide, ((number, width, inner), P("tp", None, None))]


def shared_weights(inner: int, width: int) -> list[Spec]:
    return [((width, inner), P(None, "tp")), ((width, inner), P(None, "tp")), ((inner, width), P("tp", None))]


WIDE, H = 7168, 128
DEEPSEEK = [((WIDE,), P()), ((WIDE, 256), P()), expert_weights(256, 2048, WIDE), shared_weights(2048, WIDE)]
MLA = [
    ((WIDE,), P()),
    ((WIDE, QUERY), P()),
    ((QUERY, H * (NOPE + ROPE)), P(None, "tp")),
    ((WIDE, LATENT + ROPE), P()),
    ((LATENT, H * 2 * NOPE), P(None, "tp")),
    ((H * NOPE, WIDE), P("tp", None)),
]
QWEN_ATTENTION = [
    ((2048, HEADS * E), P(None, "tp")),
    ((2048, 4 * E), P(None, "tp")),
    ((2048, 4 * E), P(None, "tp")),
    ((HEADS * E, 2048), P("tp", None)),
]

BLOCKS: Mapping[str, tuple[Callable[..., jax.Array], Sequence[object]]] = {
    "qwen3_moe": (
        qwen_layer,
        [((TOKENS, 2048), P()), ((2048,), P()), ((2048,), P()), QWEN_ATTENTION, ((2048, 128), P()), expert_weights(128, 768, 2048)],
    ),
    "mla": (mla, [((TOKENS, WIDE), P()), *MLA]),
    "mixture": (deepseek_mixture, [((TOKENS, WIDE), P()), *DEEPSEEK]),
    "mixture_sharded": (deepseek_mixture, [((TOKENS, WIDE), P("tp", None)), *DEEPSEEK]),
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

    result = NamedSharding(mesh, P("tp", None) if name.endswith("_sharded") else P())
    lowered = jax.jit(function, out_shardings=result).lower(*(abstract(a) for a in arguments))
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

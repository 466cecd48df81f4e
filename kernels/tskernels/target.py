"""What a machine can run, and what a kernel needs of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

# Only what a kernel may ask for: the full flag list of a CPU would make two equal machines look different.
_FEATURES: Final = frozenset(
    {
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
    }
    | {"asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"}
)
_TORCH_CAPABILITY: Final = {"AVX2": ("avx2", "fma"), "AVX512": ("avx2", "fma", "avx512f", "avx512bw", "avx512vl")}


@dataclass(frozen=True, slots=True)
class Target:
    """A family (`cpu`, `cuda`, `rocm`, `jax`) and features. For a machine: all it has. For a kernel: all it needs. Of a GPU the
    architecture is one (`sm_90a`, `gfx950`), and what it shares with others another (`tcgen05`); of `jax` the one platform that a program
    is for, where it is not for all of them."""

    family: str
    features: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.architecture or "+".join([self.family, *sorted(self.features)])

    @property
    def architecture(self) -> str | None:
        """Of one GPU's, its name."""
        return next((name for name in self.features if ARCHITECTURES.get(name) == self.family), None)

    def lacks(self, needed: Target) -> str | None:
        """Why a kernel that needs `needed` cannot run here; None when it can."""
        if needed == ANY:
            return "is made of torch's ops, which jax does not run" if self.family == "jax" else None
        if needed.family != self.family:
            return f"runs on {needed.family}, not on {self.family}"
        missing = sorted(needed.features - self.features)
        return f"needs {', '.join(missing)}, which this {self.family} lacks" if missing else None


ANY: Final = Target("any")
"""What a kernel needs that is made of torch's ops alone: it runs wherever its tensors are, and looks at none of their values."""
CPU: Final = Target("cpu")
CUDA: Final = Target("cuda")
TCGEN05: Final = Target("cuda", frozenset({"tcgen05"}))
ROCM: Final = Target("rocm")
JAX: Final = Target("jax")
PLATFORMS: Final = ("tpu", "cuda", "cpu")
"""That a program for JAX can be exported for."""
ARCHITECTURES: Final = {"sm_90a": "cuda", "sm_100a": "cuda", "sm_103a": "cuda", "gfx942": "rocm", "gfx950": "rocm"}
"""Of GPUs, with their family."""
_SHARED_FEATURES: Final = {"sm_100a": {"tcgen05"}, "sm_103a": {"tcgen05"}}
"""What architectures have in common that a kernel may ask for: Blackwell's tensor cores."""
DEVICES: Final = {"sm_90a": "h100", "sm_100a": "b200", "sm_103a": "b300", "gfx942": "mi300x", "gfx950": "mi355x"}
"""The device that stands for each architecture where nothing more is known: what it can do is in `cost.py`."""


def gpu(architecture: str) -> Target:
    """One GPU's architecture: `gpu("sm_90a")`."""
    return Target(ARCHITECTURES[architecture], frozenset({architecture, *_SHARED_FEATURES.get(architecture, ())}))


def platforms_of(target: Target) -> tuple[str, ...]:
    """Those that a program for JAX is exported for."""
    return tuple(sorted(target.features)) or PLATFORMS


def cpu(*features: str) -> Target:
    """What a kernel for CPUs with these instruction sets needs: `cpu("avx512f")`."""
    unknown = sorted(set(features) - _FEATURES)
    if unknown:
        raise ValueError(f"unknown CPU features {', '.join(unknown)}; known: {', '.join(sorted(_FEATURES))}")
    return Target("cpu", frozenset(features))


def parse_target(text: str) -> Target:
    """`cpu` is this machine's CPU with all it has; `cpu+avx2+fma` one with just these; plain `cpu+` one with none; `sm_90a` a GPU; `jax`
    all of JAX's platforms, `jax+tpu` one of them."""
    if text in ARCHITECTURES:
        return gpu(text)
    family, plus, features = text.partition("+")
    if family == "jax" and (not plus or features in PLATFORMS):
        return Target("jax", frozenset([features] if plus else []))
    if family != "cpu":
        known = ("cpu", *ARCHITECTURES, "jax", *(f"jax+{platform}" for platform in PLATFORMS))
        raise ValueError(f"unknown target `{text}`; known: {', '.join(known)}")
    if not plus:
        return Target("cpu", _host_features())
    return cpu(*(feature for feature in features.split("+") if feature))


@cache
def _host_features() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return _torch_features()
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return _FEATURES & frozenset(value.split())
    return frozenset()


def _torch_features() -> frozenset[str]:
    import torch  # only where there is no /proc/cpuinfo

    capability = torch.backends.cpu.get_cpu_capability()
    # Every arm64 Mac has these; torch calls its capability DEFAULT.
    arm = ("asimd", "asimddp") if sys.platform == "darwin" else ()
    return frozenset(_TORCH_CAPABILITY.get(capability, arm))

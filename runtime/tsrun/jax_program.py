"""Programs for JAX: one process holds weights and caches on all devices, and runs the exported program of a step's bucket.

Dimensions: T tokens, S rows of the result and P columns of the block tables, as a step has them; its bucket has as many or more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tsrun.artifact import Artifact
from tsrun.errors import ArtifactError, MachineError
from tsrun.jax_steps import Bucket, JaxSteps, Part, read_steps
from tsrun.limits import Limits
from tsrun.output import Output
from tsrun.program import Program
from tsrun.step import Ints
from tsrun.step_inputs import StepInputs
from tsrun.weights import Weights

if TYPE_CHECKING:
    import jax
    from jax import Array
    from jax.sharding import NamedSharding
    from jax.stages import Compiled, Wrapped

_DTYPES: Final = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "f64": "float64", "i32": "int32", "u8": "uint8"}


class JaxPrograms:
    """The plans of a program, which are compiled by XLA for a bucket when a step first needs it."""

    can_run_head = False

    def __init__(self, artifact: Artifact, program: Program, limits: Limits, inputs: StepInputs) -> None:
        self._artifact, self._limits, self._inputs = artifact, limits, inputs
        self._groups = program.sequence_groups
        self._steps = steps = read_steps(artifact.path)
        self._devices = _devices(artifact, steps)
        import jax

        axes = artifact.manifest.axes
        mesh = jax.sharding.Mesh(np.array(self._devices).reshape([size for _, size in axes]), [name for name, _ in axes])
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(tuple(name for name, _ in axes)))
        self._weights = self._read_weights()
        self._caches = [_zeros(part, self._split, len(self._devices)) for part in steps.caches]
        self._states = [_zeros(part, self._split, len(self._devices)) for part in steps.kept]
        self.compiled: dict[Bucket, Compiled] = {}
        self._copied = jax.jit(_with_copy, donate_argnums=0)
        self._output: NDArray[Any] | None = None

    def run(self, plan: int, T: int, S: int, P: int) -> Output:
        """The plan is that of the step's bucket."""
        bucket = self._steps.bucket(T, S)
        arguments = (self._padded(bucket, T, S, P), self._weights, self._caches, self._states)
        if bucket not in self.compiled:
            self.compiled[bucket] = self._program(bucket).lower(*arguments).compile()
        output, self._caches, self._states = self.compiled[bucket](*arguments)
        # On one device as on the others; the rows that pad the step come last.
        self._output = np.asarray(output.addressable_data(0))
        dtype = next(name for name, known in _DTYPES.items() if known == self._output.dtype.name)
        return Output(self._output.ctypes.data, dtype, (S, *self._output.shape[1:]))

    def run_head(self, plan: int, T: int, S: int, P: int) -> Output:
        raise NotImplementedError

    def copy(self, copies_C3: Ints) -> None:
        """Copy pages of the states, each (group, source, target), in order."""
        for _, source, target in copies_C3.tolist() if self._states else ():
            self._states = self._copied(self._states, source, target)

    def _program(self, bucket: Bucket) -> Wrapped:
        """What was exported for the platform of the devices."""
        import jax
        from jax.export import deserialize

        file = self._artifact.file(f"jax/{_platform(self._devices[0])}-{bucket.file}")
        try:
            return jax.jit(deserialize(bytearray(file.read_bytes())).call, donate_argnums=(2, 3))
        except (OSError, ValueError) as error:
            raise ArtifactError(str(file), f"is no program that this JAX reads ({error})", "compile it again") from None

    def _read_weights(self) -> dict[str, Array]:
        import jax

        parts: list[list[Array]] = [[] for _ in self._steps.weights]
        for rank, device in enumerate(self._devices):
            weights = Weights(self._artifact.weights_file(rank), screen=False)
            for found, part in zip(parts, self._steps.weights, strict=True):
                place = weights.place(part.name, part.dtype, tuple(part.shape))
                assert isinstance(place.buffer, memoryview)
                host = np.frombuffer(place.buffer, dtype=_numpy(part.dtype)).reshape(1, *part.shape)
                found.append(jax.device_put(host, device))
        ranks = len(self._devices)
        return {
            part.name: jax.make_array_from_single_device_arrays((ranks, *part.shape), self._split, found)
            for part, found in zip(self._steps.weights, parts, strict=True)
        }

    def _padded(self, bucket: Bucket, T: int, S: int, P: int) -> Mapping[str, Ints]:
        """The step's inputs, as the bucket's program takes them. Each group of ranks has an equal block of the rows, which grows alike; the
        rows that are added write to the page past the last, and the sequences have no rows."""
        block, padded_block = T // self._groups, bucket.tokens // self._groups
        grown = padded_block - block
        pages = self._limits.pages
        padded: dict[str, Ints] = {}
        for given in self._steps.inputs:
            source = self._inputs.array(given.step, given.window)
            match given.step:
                case "ids" | "positions" | "slots":
                    fill = pages[given.window] * self._limits.page_size if given.step == "slots" else 0
                    rows = np.full((self._groups, padded_block), fill, dtype=np.int32)
                    rows[:, :block] = source[:T].reshape(self._groups, block)
                    padded[given.name] = rows.reshape(-1)
                case "spans":
                    spans = source[: 2 * S].reshape(S, 2)
                    moved = np.minimum(spans + spans[:, :1] // block * grown, bucket.tokens)
                    padded[given.name] = _longer(moved, bucket.rows, bucket.tokens)
                case "last":
                    padded[given.name] = _longer(source[:S] + source[:S] // block * grown, bucket.rows, 0)
                case "tables":
                    table = np.zeros((bucket.rows, self._steps.columns), dtype=np.int32)
                    columns = min(P, self._steps.columns)
                    table[:S, :columns] = source[: S * P].reshape(S, P)[:, :columns]
                    padded[given.name] = table
                case _:
                    padded[given.name] = _longer(source[:S], bucket.rows, 0)
        return padded


def _longer(rows: Ints, length: int, fill: int) -> Ints:
    made = np.full((length, *rows.shape[1:]), fill, dtype=np.int32)
    made[: len(rows)] = rows
    return made


def _numpy(dtype: str) -> np.dtype[Any]:
    import ml_dtypes  # JAX's own, which knows bf16

    name = _DTYPES[dtype]
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def _zeros(part: Part, sharding: NamedSharding, ranks: int) -> Array:
    import jax
    import jax.numpy as jnp

    made: Array = jax.jit(partial(jnp.zeros, (ranks, *part.shape), _numpy(part.dtype)), out_shardings=sharding)()
    return made


def _with_copy(states: Sequence[Array], source: int, target: int) -> list[Array]:
    return [s.at[:, target].set(s[:, source]) for s in states]


def _platform(device: jax.Device) -> str:
    """As programs name it."""
    return "cuda" if device.platform == "gpu" else str(device.platform)


def _devices(artifact: Artifact, steps: JaxSteps) -> Sequence[jax.Device]:
    """One for each rank, of a platform that the programs were exported for. A CPU is as many devices as are wanted."""
    if find_spec("jax") is None:
        raise MachineError(
            str(artifact.path), f"is for {artifact.manifest.target}, and jax is not installed", "`pip install 'tsc-llm[jax]'`"
        )
    import jax

    ranks = artifact.manifest.ranks
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
            jax.config.update("jax_num_cpu_devices", ranks)
    found = {_platform(devices[0]): devices for devices in (jax.devices(), jax.devices("cpu"))}
    usable = [devices for platform, devices in found.items() if platform in steps.platforms]
    if not usable:
        what = f"was exported for {' and '.join(steps.platforms)}, and this machine has {' and '.join(found)}"
        raise MachineError(str(artifact.path), what, "compile it with --target jax, which is for all of them")
    enough = [devices for devices in usable if len(devices) >= ranks]
    if not enough:
        raise MachineError(str(artifact.path), f"has {ranks} ranks, and JAX sees {len(usable[0])} devices", "compile it for a smaller mesh")
    return enough[0][:ranks]

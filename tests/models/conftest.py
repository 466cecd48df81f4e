"""Tiny models of each architecture, made once a session."""

from __future__ import annotations

import pytest
from tests.models.tiny import TinyModels


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("tiny"))

"""Models for GPUs, made once a session."""

from __future__ import annotations

import pytest
from tests.gpu.models import GpuModels


@pytest.fixture(scope="session")
def gpu_models(tmp_path_factory: pytest.TempPathFactory) -> GpuModels:
    return GpuModels(tmp_path_factory.mktemp("gpu"))

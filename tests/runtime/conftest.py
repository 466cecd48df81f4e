"""Toy artifacts, written once a session. The repository's root goes on the path so that tests may import `tests.runtime.toy`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tskernels.waiting import spin_briefly

spin_briefly()  # before torch is loaded, so that tests are not slow when they share the machine

from tests.runtime.toy import Toy, write_artifact  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def toy_artifact(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(toy, tmp_path_factory.mktemp("one") / "toy.tsa", ranks=1)


@pytest.fixture(scope="session")
def toy_artifact_of_two_ranks(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(toy, tmp_path_factory.mktemp("two") / "toy.tsa", ranks=2)

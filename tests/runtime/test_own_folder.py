"""A process's folder: gone with it, and after a kill with the next one; never taken from one that lives."""

import subprocess
import sys
from pathlib import Path

import pytest

from tsrun.own_folder import OwnFolder

HOLDER = """
import sys
from tsrun.own_folder import OwnFolder
folder = OwnFolder()
(folder.path / "socket").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


def holder() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_it_is_private_and_goes_when_closed(place: Path) -> None:
    folder = OwnFolder()
    assert folder.path.parent == place
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "file").touch()
    folder.close()
    folder.close()
    assert not list(place.iterdir())


def test_it_goes_at_the_end_of_its_process(place: Path) -> None:
    process, path = holder()
    process.communicate("", timeout=60)
    assert process.returncode == 0
    assert not path.exists()


def test_one_of_a_killed_process_goes_with_the_next(place: Path) -> None:
    killed, abandoned = holder()
    living, held = holder()
    killed.kill()
    killed.communicate(timeout=60)
    assert (abandoned / "socket").exists()
    folder = OwnFolder()
    assert not abandoned.exists()
    assert (held / "socket").exists()
    folder.close()
    living.communicate("", timeout=60)


def test_a_place_that_can_not_be_listed_will_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        folder = OwnFolder()
    assert folder.path.parent == place
    folder.close()


def test_what_is_not_such_a_folder_stays(place: Path) -> None:
    (place / "tsrun-notes").mkdir()
    (place / "tsrun-file").touch()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "held").touch()
    (place / "tsrun-link").symlink_to(elsewhere)
    OwnFolder().close()
    assert {path.name for path in place.iterdir()} == {"tsrun-notes", "tsrun-file", "tsrun-link", "elsewhere"}
    assert (elsewhere / "held").exists()

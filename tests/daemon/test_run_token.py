"""The file with a container's token."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudai_daemon import run_token
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.run_token import run_token_file
from cloudai_daemon.task_run import TaskRun
from cloudai_fusefs.mount_control import RunPlace


def make_run(tmp_path: Path) -> TaskRun:
    place = RunPlace(path="user-123/training/2026-11-20_15-04-05", task_id="t")
    return TaskRun(task="training", place=place, mount_point=tmp_path, source=f"127.0.0.1:7443/{place.path}")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_token, "_ask_for_token", lambda run, say: "secret")


def test_token_file_is_its_readers_alone_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDAI_RUNTIME_DIR", str(tmp_path / "run"))

    with run_token_file(make_run(tmp_path), None, "name", pytest.fail) as path:
        assert path is not None
        assert path.read_text() == "secret\n"
        assert [place.stat().st_mode & 0o777 for place in (path, path.parent)] == [0o400, 0o700]

    assert not path.exists()


def test_token_file_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLOUDAI_RUNTIME_DIR", str(tmp_path / "file"))

    with (
        pytest.raises(CommandFailed) as raised,
        run_token_file(make_run(tmp_path), None, "name", pytest.fail),
    ):
        pytest.fail("there is no file")

    assert raised.value.exit_code == ExitCode.NOT_STARTED
    assert raised.value.line.endswith("File exists")

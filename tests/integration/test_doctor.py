"""`cloudai doctor` on real mounts, in health and without a master, a daemon, a token."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from cloudai_daemon.mount_table import is_dead
from cloudai_fusefs.kernel_knobs import READ_AHEAD_KIB
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, wait_until
from support.user_session import UserSession

PROBLEMS_FOUND = 1


@pytest.fixture
def mount(make_mount: MakeMount) -> MountProcess:
    return make_mount()


@pytest.fixture
def session() -> Iterator[UserSession]:
    with UserSession() as session:
        yield session


def findings_of(answer: str) -> dict[str, tuple[str, str, str]]:
    """Check to state, text and advice, of the one mount."""
    (mount,) = json.loads(answer)["mounts"]
    return {
        finding["check"]: (finding["state"], finding["text"], finding["advice"])
        for finding in mount["findings"]
    }


def test_healthy_mount(mount: MountProcess) -> None:
    done = mount.cloudai("doctor", "--json", str(mount.mount_point))

    findings = findings_of(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert findings["tree"][0] == findings["read_ahead_kb"][0] == findings["daemon"][0] == "ok"
    assert findings["master"][1].startswith(f"{mount.source} answers in ")
    assert findings["token"][1].startswith("of user-123, until 20")
    assert findings["staged"] == ("ok", "everything is durable", "")
    assert mount.token_file.read_text() not in done.stdout


def test_master_that_is_away_is_a_problem_and_what_is_staged_a_note(
    mount: MountProcess, master: MasterProcess
) -> None:
    run = mount.make_run(RUN)
    (run / "first").write_text("looked into")
    mount.wait_durable()
    master.kill()
    (run / "second").write_text("waits")

    done = mount.cloudai("doctor", "--json", str(mount.mount_point))

    findings = findings_of(done.stdout)
    assert done.returncode == PROBLEMS_FOUND
    assert findings["master"][0] == "problem"
    assert "the master did not answer" in findings["master"][1]
    assert findings["tree"][0] == "ok"
    assert findings["staged"][0] == "note"


def test_token_that_was_revoked_is_a_problem(mount: MountProcess, master: MasterProcess) -> None:
    (token,) = json.loads(master.run("token", "list", "--json").stdout)
    master.run("token", "revoke", token["id"])
    found: dict[str, tuple[str, str, str]] = {}

    def is_refused() -> bool:
        found.update(findings_of(mount.cloudai("doctor", "--json", str(mount.mount_point)).stdout))
        return found["token"][0] == "problem"

    # The master may take an answer about a token for good for a second.
    wait_until(is_refused, "the refusal")
    assert found["token"][1].startswith("not authenticated")
    assert found["token"][2].endswith(f"write it to {mount.token_file}")
    assert found["master"][0] == "ok"


def test_dead_daemon_is_a_problem_with_the_way_out(mount: MountProcess) -> None:
    os.kill(mount.pid, signal.SIGKILL)
    wait_until(lambda: is_dead(mount.mount_point), "the daemon's end")

    done = mount.cloudai("doctor", "--json", str(mount.mount_point))

    assert done.returncode == PROBLEMS_FOUND
    assert findings_of(done.stdout)["tree"] == (
        "problem",
        "its daemon has ended",
        f"`cloudai umount {mount.mount_point}`, and mount it again",
    )


def test_mount_that_hangs_is_a_problem_within_its_bound(mount: MountProcess) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        done = mount.cloudai("doctor", "--json", str(mount.mount_point))
    finally:
        os.kill(mount.pid, signal.SIGCONT)

    assert done.returncode == PROBLEMS_FOUND
    findings = findings_of(done.stdout)
    assert findings["tree"][:2] == ("problem", "does not answer within 5 s")
    assert findings["daemon"][0] == "problem"


def test_mount_of_a_user_is_a_note_with_the_line_that_root_may_run(
    session: UserSession, shared_master: MasterProcess
) -> None:
    token_file = session.write_file("token", shared_master.make_token("user-123"))
    options = f"insecure,token_file={token_file}"
    assert session.cloudai("mount", shared_master.address, session.mount_point, "-o", options).returncode == 0

    done = session.cloudai("doctor", "--json", session.mount_point)

    assert (done.returncode, done.stderr) == (0, "")
    state, text, advice = findings_of(done.stdout)["read_ahead_kb"]
    assert (state, text.split()[:2]) == ("note", ["is", "128,"])
    assert advice.startswith(f"`echo {READ_AHEAD_KIB} | sudo tee /sys/class/bdi/0:")
    assert findings_of(done.stdout)["state"][0] == "ok"

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import RegistryEntry, find_by_path, list_live, register, unregister


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def entry_of(mount_point: str, pid: int) -> RegistryEntry:
    return RegistryEntry(
        mount_point=Path(mount_point),
        source="master.example:7443",
        control_socket=Path("/run/control.sock"),
        state_dir=Path("/state"),
        process=ProcessIdentity.of(pid),
    )


def test_entry_of_a_live_process_is_found(tmp_path: Path) -> None:
    entry = entry_of("/mnt/cloudai", os.getpid())
    register(entry, tmp_path)
    assert list_live([tmp_path]) == [entry]


def test_entry_of_an_ended_process_is_removed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    path = register(entry_of("/mnt/cloudai", sleeper.pid), tmp_path)
    sleeper.kill()
    sleeper.wait()
    assert list_live([tmp_path]) == []
    assert not path.exists()


def test_entry_of_a_reused_pid_is_removed(tmp_path: Path) -> None:
    live = entry_of("/mnt/cloudai", os.getpid())
    path = register(replace(live, process=replace(live.process, start_ticks=1)), tmp_path)
    assert list_live([tmp_path]) == []
    assert not path.exists()


def test_entry_of_an_earlier_boot_is_removed(tmp_path: Path) -> None:
    live = entry_of("/mnt/cloudai", os.getpid())
    register(replace(live, process=replace(live.process, boot_id="earlier")), tmp_path)
    assert list_live([tmp_path]) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"process": 1}', '{"process": {"pid": "x"}}'])
def test_damaged_entry_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "mnt.json").write_text(text)
    assert list_live([tmp_path]) == []
    assert not (tmp_path / "mnt.json").exists()


def test_unregister_leaves_a_successor_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    successor = entry_of("/mnt/cloudai", os.getpid())
    register(successor, tmp_path)
    unregister(entry_of("/mnt/cloudai", sleeper.pid), tmp_path)
    assert list_live([tmp_path]) == [successor]


def test_mount_of_a_path_is_the_longest_prefix() -> None:
    outer, inner = entry_of("/mnt", os.getpid()), entry_of("/mnt/cloudai", os.getpid())
    assert find_by_path([outer, inner], Path("/mnt/cloudai/user-123")) == inner
    assert find_by_path([outer, inner], Path("/mnt/cloudai-other")) == outer
    assert find_by_path([outer, inner], Path("/home")) is None


def test_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert not identity.wait_gone(0)
    identity.send_signal(signal.SIGKILL)
    assert identity.wait_gone(10)
    assert not identity.is_alive
    assert not identity.send_signal(signal.SIGTERM)


def test_entry_of_an_older_daemon_is_read() -> None:
    entry = entry_of("/mnt/cloudai", os.getpid())
    fields = json.loads(replace(entry, read_only=True).to_json())
    assert RegistryEntry.from_json(json.dumps(fields)).read_only
    del fields["read_only"]
    assert RegistryEntry.from_json(json.dumps(fields)) == entry

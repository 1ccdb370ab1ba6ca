"""What an earlier mount has left keeps the next one from nothing: it is used before any of it is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.files import write_synced
from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, run_in
from support.network_proxy import Act, Fault, NetworkProxy, Way

FILE_COUNT = 500
FILE_BYTES = 2048
COMMIT_REQUEST_BYTES = 32 * 1024
"""What only the commit of many of the files carries: it does not arrive, and all that is asked before it does."""


@pytest.fixture
def network(master: MasterProcess) -> Iterator[NetworkProxy]:
    with NetworkProxy(master.address) as network:
        yield network


@pytest.fixture
def mount(
    network: NetworkProxy, master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> MountProcess:
    """A mount behind the network."""
    mount = MountProcess(tmp_path / "behind", network.address, master.make_token("user-123"))
    mounts.append(mount)
    mount.start()
    return mount


def test_mount_is_used_while_all_that_an_earlier_one_left_is_still_staged(
    mount: MountProcess, network: NetworkProxy, make_mount: MakeMount
) -> None:
    """The mount could not be made without the master, which is away from its first commit on."""
    run = mount.make_run(RUN)
    write_synced(run / "published", b"published")
    network.refuse()
    contents = {f"file-{number:03}": os.urandom(FILE_BYTES) for number in range(FILE_COUNT)}
    for name, content in contents.items():
        (run / name).write_bytes(content)
    mount.kill()
    network.restore()
    network.arm(
        Fault(way=Way.TO_MASTER, act=Act.SWALLOW_ALL, after_bytes=0, request_bytes_min=COMMIT_REQUEST_BYTES)
    )

    mount.start()

    network.wait_for_fault()
    network.refuse()
    assert {path.name for path in run.iterdir()} == contents.keys() | {"published"}
    assert {(run / name).stat().st_size for name in contents} == {FILE_BYTES}
    assert {name: (run / name).read_bytes() for name in contents} == contents
    contents["file-000"] += b" and more"
    with (run / "file-000").open("ab") as file:
        file.write(b" and more")
    contents["after"] = b"after"
    (run / "after").write_bytes(b"after")
    assert mount.status()["pending_count"] == len(contents)
    network.restore()
    mount.wait_durable()
    found = {path.name: path.read_bytes() for path in run_in(make_mount("other")).iterdir()}
    assert found == contents | {"published": b"published"}

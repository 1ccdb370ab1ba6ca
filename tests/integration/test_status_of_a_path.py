"""What `cloudai status PATH` says of a file and of a directory."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from support.master_process import MasterProcess
from support.mount_process import RUN, MakeMount, MountProcess, wait_until
from support.network_proxy import NetworkProxy

MIB = 1024 * 1024


def status_of(mount: MountProcess, path: Path) -> list[str]:
    """The lines behind the first, which is the mount's."""
    done = mount.cloudai("status", str(path))
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()[1:]]


def test_file_is_staged_and_then_durable_and_its_directory_counts_both(
    make_mount: MakeMount, master: MasterProcess
) -> None:
    mount = make_mount()
    run = mount.make_run(RUN)
    (run / "config.yaml").write_text("lr: 0.1\n")
    mount.wait_durable()
    master.kill()
    (run / "model.bin").write_bytes(os.urandom(10_000))
    model = f"user-123/training/{RUN}/model.bin"

    assert status_of(mount, run / "config.yaml") == [
        f"durable 8 B of 8 B user-123/training/{RUN}/config.yaml"
    ]
    assert status_of(mount, run / "model.bin") == [f"staged 0 B of 9.8 KiB {model}"]
    assert status_of(mount, run)[0] == "1 file not durable yet, 9.8 KiB to send, 1 file durable"
    answer = json.loads(mount.cloudai("status", "--json", str(run / "model.bin")).stdout)
    assert (answer[0]["file"]["state"], answer[0]["file"]["size_bytes"]) == ("staged", 10_000)

    master.start()
    mount.wait_durable()

    assert status_of(mount, run / "model.bin") == [f"durable 9.8 KiB of 9.8 KiB {model}"]
    assert status_of(mount, run) == ["everything is durable, 2 files"]


def test_file_is_uploading_with_the_share_of_it_that_is_at_the_master(
    mounts: list[MountProcess], master: MasterProcess, tmp_path: Path
) -> None:
    with NetworkProxy(master.address) as network:
        mount = MountProcess(tmp_path / "mount", network.address, master.make_token("user-123"))
        mounts.append(mount)
        mount.start()
        run = mount.make_run(RUN)
        network.slow_down(bytes_per_second=8 * MIB)
        (run / "model.bin").write_bytes(os.urandom(64 * MIB))

        def shares() -> list[tuple[int, int]]:
            line = f"uploading (\\d+) % (\\d+).0 MiB of 64.0 MiB user-123/training/{RUN}/model.bin"
            found = [re.fullmatch(line, said) for said in status_of(mount, run / "model.bin")]
            return [(int(one[1]), int(one[2])) for one in found if one]

        wait_until(lambda: any(0 < percent < 100 for percent, _ in shares()), "a part of it")

        ((percent, arrived_mib),) = shares()
        assert percent == arrived_mib * 100 // 64
        network.slow_down()
        mount.wait_durable()
        assert shares() == []

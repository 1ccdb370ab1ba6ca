"""The promises on extended attributes, with `-o xattr`, on real mounts."""

from __future__ import annotations

import os
from pathlib import Path

from support.mount_process import RUN, MakeMount, run_in, wait_until

ON = "insecure,timeo=20,xattr"


def xattrs_of(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_what_was_set_survives_the_daemon_and_is_seen_elsewhere(make_mount: MakeMount) -> None:
    """X2. What `setxattr()` and `removexattr()` did survives the death of the mount daemon, and after `fsync()` the
    loss of the workstation; another mount shows it within two seconds.
    """
    mount = make_mount(options=ON)
    run = mount.make_run(RUN)
    (run / "directory").mkdir()
    (run / "directory" / "file").write_text("content")
    given = {"user.empty": b"", "user.binary": bytes(range(256)), "user.text": b"value"}
    for path in (run, run / "directory", run / "directory" / "file"):
        for name, value in given.items():
            os.setxattr(path, name, value)
        os.removexattr(path, "user.text")
    del given["user.text"]

    mount.restart()

    for path in (run, run / "directory", run / "directory" / "file"):
        assert xattrs_of(path) == given, path
    mount.wait_durable()
    other = make_mount("other", options=ON)
    for path in (run_in(other), run_in(other) / "directory", run_in(other) / "directory" / "file"):
        assert xattrs_of(path) == given, path

    os.setxattr(run / "directory", "user.later", b"news")
    wait_until(lambda: "user.later" in os.listxattr(run_in(other) / "directory"), "the news", seconds_max=2)
    os.removexattr(run / "directory", "user.later")
    wait_until(lambda: xattrs_of(run_in(other) / "directory") == given, "the removal", seconds_max=2)

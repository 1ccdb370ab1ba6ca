"""The contenders by name, made so that those who can share a master do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudai_benchmarks.contenders.cloudai import (
    CloudAI,
    CloudAIMaster,
    CloudAIMount,
    CloudAIMountAsUser,
    CloudAIMountWithXattrs,
)
from cloudai_benchmarks.contenders.contender import Contender, Source
from cloudai_benchmarks.contenders.local import Local
from cloudai_benchmarks.contenders.rclone import Rclone
from cloudai_benchmarks.contenders.sshfs import Sshfs

LOCAL: Final = "local"
CLOUDAI: Final = "cloudai"
CLOUDAI_AS_USER: Final = "cloudai-user"
CLOUDAI_XATTR: Final = "cloudai-xattr"
CLOUDAI_TLS: Final = "cloudai-tls"
SSHFS: Final = "sshfs"
RCLONE: Final = "rclone"

CONTENDER_NAMES: Final = (LOCAL, CLOUDAI, CLOUDAI_AS_USER, CLOUDAI_XATTR, CLOUDAI_TLS, SSHFS, RCLONE)
"""In the order of the report."""

OURS: Final = (CLOUDAI, CLOUDAI_AS_USER, CLOUDAI_XATTR, CLOUDAI_TLS)


def default_names() -> tuple[str, ...]:
    """All that this user can run, without TLS, which needs a master of its own, and without what is off by default."""
    left_out = {CLOUDAI_TLS, CLOUDAI_XATTR}
    if os.geteuid() != 0:
        left_out.add(CLOUDAI_AS_USER)
    return tuple(name for name in CONTENDER_NAMES if name not in left_out)


def make_contenders(names: Sequence[str], directory: Path, source: Source) -> list[Contender]:
    """In the order of CONTENDER_NAMES; nothing is started. Each keeps its files below `directory`."""
    contenders: list[Contender] = []
    if LOCAL in names:
        contenders.append(Local(LOCAL, source))
    mount_classes = {
        CLOUDAI: CloudAIMount,
        CLOUDAI_AS_USER: CloudAIMountAsUser,
        CLOUDAI_XATTR: CloudAIMountWithXattrs,
    }
    if mount_classes.keys() & set(names):
        master = CloudAIMaster(directory / "master", source)
        contenders += [
            CloudAI(name, directory / name, master, mount_class)
            for name, mount_class in mount_classes.items()
            if name in names
        ]
    if CLOUDAI_TLS in names:
        master = CloudAIMaster(directory / "master-tls", source, tls=True)
        contenders.append(CloudAI(CLOUDAI_TLS, directory / CLOUDAI_TLS, master))
    if SSHFS in names:
        contenders.append(Sshfs(SSHFS, directory / SSHFS, source))
    if RCLONE in names:
        contenders.append(Rclone(RCLONE, directory / RCLONE, source))
    return contenders

"""The contenders by name, made so that those who can share a master do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudai_benchmarks.contenders.cloudai import CloudAI, CloudAIMaster, CloudAIMountAsUser
from cloudai_benchmarks.contenders.contender import Contender, Source
from cloudai_benchmarks.contenders.local import Local
from cloudai_benchmarks.contenders.rclone import Rclone
from cloudai_benchmarks.contenders.sshfs import Sshfs

LOCAL: Final = "local"
CLOUDAI: Final = "cloudai"
CLOUDAI_AS_USER: Final = "cloudai-user"
CLOUDAI_TLS: Final = "cloudai-tls"
SSHFS: Final = "sshfs"
RCLONE: Final = "rclone"

CONTENDER_NAMES: Final = (LOCAL, CLOUDAI, CLOUDAI_AS_USER, CLOUDAI_TLS, SSHFS, RCLONE)
"""In the order of the report."""

OURS: Final = (CLOUDAI, CLOUDAI_AS_USER, CLOUDAI_TLS)


def default_names() -> tuple[str, ...]:
    """All that this user can run, without TLS, which needs a master of its own."""
    left_out = {CLOUDAI_TLS} if os.geteuid() == 0 else {CLOUDAI_TLS, CLOUDAI_AS_USER}
    return tuple(name for name in CONTENDER_NAMES if name not in left_out)


def make_contenders(names: Sequence[str], directory: Path, source: Source) -> list[Contender]:
    """In the order of CONTENDER_NAMES; nothing is started. Each keeps its files below `directory`."""
    contenders: list[Contender] = []
    if LOCAL in names:
        contenders.append(Local(LOCAL, source))
    if CLOUDAI in names or CLOUDAI_AS_USER in names:
        master = CloudAIMaster(directory / "master", source)
        if CLOUDAI in names:
            contenders.append(CloudAI(CLOUDAI, directory / CLOUDAI, master))
        if CLOUDAI_AS_USER in names:
            contenders.append(
                CloudAI(CLOUDAI_AS_USER, directory / CLOUDAI_AS_USER, master, CloudAIMountAsUser)
            )
    if CLOUDAI_TLS in names:
        master = CloudAIMaster(directory / "master-tls", source, tls=True)
        contenders.append(CloudAI(CLOUDAI_TLS, directory / CLOUDAI_TLS, master))
    if SSHFS in names:
        contenders.append(Sshfs(SSHFS, directory / SSHFS, source))
    if RCLONE in names:
        contenders.append(Rclone(RCLONE, directory / RCLONE, source))
    return contenders

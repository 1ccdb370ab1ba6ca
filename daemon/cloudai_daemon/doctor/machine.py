"""What every mount needs of the machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from cloudai_daemon.doctor.findings import Finding, note, ok, problem
from cloudai_daemon.mounting import allows_other
from cloudai_daemon.places import is_root
from cloudai_fusefs.kernel_knobs import (
    SHOWS_DIRECT_WRITES_SINCE,
    shows_direct_writes,
)

LIBFUSE: Final = "libfuse3.so.3"


def look_at_machine() -> list[Finding]:
    """What every mount needs."""
    return [check_kernel(), check_libfuse(), check_fuse_device(), check_fusermount(), check_fuse_conf()]


def check_kernel(release: str | None = None) -> Finding:
    """`release`: as uname(2) tells it."""
    check = "kernel"
    release = release or os.uname().release
    if not shows_direct_writes(release):
        since = ".".join(map(str, SHOWS_DIRECT_WRITES_SINCE))
        return note(
            check, f"{release}, writing takes more CPU than it has to", f"boot {since} or a later one"
        )
    return ok(check, release)


def check_libfuse(library: str = LIBFUSE) -> Finding:
    check = "libfuse"
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        return problem(check, f"{library} is missing, nothing can be mounted", "`apt-get install libfuse3-3`")
    loaded.fuse_pkgversion.restype = ctypes.c_char_p
    return ok(check, loaded.fuse_pkgversion().decode())


def check_fuse_device(device: Path = Path("/dev/fuse")) -> Finding:
    check = "/dev/fuse"
    if not device.exists():
        return problem(check, "is missing", "`modprobe fuse`, or start the container with --device /dev/fuse")
    if not os.access(device, os.R_OK | os.W_OK):
        return problem(check, "may not be opened by this user", f"`chmod 666 {device}` as root")
    if device.stat().st_mode & 0o006 != 0o006:
        return note(check, "only root may open it", f"`chmod 666 {device}` lets others mount")
    return ok(check, "everybody may open it")


def check_fusermount(program: str | None = None) -> Finding:
    """Root mounts without it."""
    check = "fusermount3"
    worse = note if is_root() else problem
    path = program or shutil.which(check)
    if path is None:
        return worse(check, "is missing, others than root cannot mount", "`apt-get install fuse3`")
    status = Path(path).stat()
    is_setuid = status.st_uid == 0 and status.st_mode & stat.S_ISUID
    if not is_setuid or os.statvfs(path).f_flag & os.ST_NOSUID:
        return worse(
            check, "is not setuid root, others than root cannot mount", f"`chmod u+s {path}` as root"
        )
    return ok(check, "setuid root")


def check_fuse_conf(fuse_conf: Path = Path("/etc/fuse.conf")) -> Finding:
    check = "allow_other"
    if allows_other(fuse_conf):
        return ok(check, "for everybody's mounts")
    if is_root():
        return ok(check, "for root's mounts")
    return note(
        check, "for root's mounts only", f"a line `user_allow_other` in {fuse_conf} makes it everybody's"
    )

"""The composition root of a mount: builds the parts, runs them, and takes them down in order."""

from __future__ import annotations

from collections.abc import Callable

from cloudai_fusefs.mount_control import MountConfig, MountControl


async def serve_mount(config: MountConfig, on_ready: Callable[[MountControl], None]) -> None:
    """Mounts, calls `on_ready` once when the tree answers, and serves until the mount is gone.

    Returns after `umount`/`fusermount3 -u` from outside. Cancelled: unmounts and returns; what is not yet
    durable stays staged for the next mount. Raises MasterUnavailable, Unauthenticated or another
    CloudAIError within a few seconds when the master cannot be used, OSError when the kernel refuses the
    mount or the state directory is another mount's.
    """
    raise NotImplementedError

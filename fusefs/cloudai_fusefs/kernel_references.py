"""Asks the kernel to give back its references to nodes that nobody uses, so that the daemon need not know them.

What the kernel has looked up it keeps until its memory is short; `forget` tells of each that it gave up. Two ways:

* FUSE_NOTIFY_PRUNE, from Linux 6.18 on (linux/fuse.h, protocol 7.45): inodes that nobody uses go, and what is in use
  stays as it is, working directories and what is bound elsewhere too. It waits for no lock that a request holds.
* Before that, the names of files and symlinks alone are forgotten. To forget a directory's takes the name from who is
  in it as well: getcwd(2) would fail until somebody looked for the name again. Directories stay until the kernel gives
  them up by itself.

pyfuse3 and libfuse 3.14 do not know the first: it is written to the mount's /dev/fuse, as libfuse writes what it knows.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cloudai_fusefs.node import Node
from cloudai_fusefs.run_nodes import Invalidation

log = logging.getLogger(__name__)

NOTIFY_PRUNE: Final = 9

NODES_AT_ONCE: Final = 500
"""In one notification: 2 ms, and more where the pages of large files go."""

WAITING_MAX: Final = 4000
"""Notifications, of 2 million nodes: who asks while more wait asks again later."""

STOP_SECONDS_MAX: Final = 1.0

_FUSE_DEVICE: Final = os.makedev(10, 229)
_HEADER: Final = struct.Struct("=IiQ")  # fuse_out_header: length, the notification's code, 0
_PRUNE: Final = struct.Struct("=IIQ")  # fuse_notify_prune_out: how many numbers follow, and room


class KernelReferences:
    """Those of one mount. Started when the mount is up, stopped before it goes."""

    def __init__(self, notify: Callable[[Invalidation], None]) -> None:
        """`notify` tells the kernel that a name is not true any more, and may wait; KernelNotifier's."""
        self._notify = notify
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._descriptor: int | None = None  # None: not started, or stopped
        # Around what is written: once the mount has closed it, the number may be another file's.
        self._descriptor_lock = threading.Lock()
        self._can_prune = False

    def start(self) -> None:
        """Without a descriptor of /dev/fuse nothing is asked for: the kernel keeps what it wants."""
        try:
            self._descriptor = _find_fuse_descriptor()
            self._can_prune = self._find_whether_it_prunes()
        except OSError as error:
            self._descriptor = None
            log.warning("the kernel cannot be asked to give references back: %s", error)
            return
        threading.Thread(target=self._run, name="kernel-references", daemon=True).start()

    def stop(self) -> None:
        """Nothing is asked for after this."""
        self._descriptor = None
        # Whoever has looked at the number is done with it, or within the system call, which outlives its closing.
        if self._descriptor_lock.acquire(timeout=STOP_SECONDS_MAX):
            self._descriptor_lock.release()
        self._waiting.put(None)

    def ask_back(self, nodes: Iterable[Node]) -> None:
        """Those to nodes of one tree that nobody uses. Returns at once; the kernel answers with `forget`.

        What is in a directory comes before it: until that is gone the directory is in use.
        """
        if self._descriptor is None or self._waiting.qsize() > WAITING_MAX:
            return
        idle = [node for node in nodes if node.lookup_count and not node.open_count]
        for first in range(0, len(idle), NODES_AT_ONCE):
            some = idle[first : first + NODES_AT_ONCE]
            # Numbers and names: what waits here must not hold the nodes.
            if self._can_prune:
                self._waiting.put(partial(self._prune, [node.ino for node in some]))
            else:
                names = [name for node in some for name in _names_of(node)]
                self._waiting.put(partial(self._forget_names, names))

    def _find_whether_it_prunes(self) -> bool:
        try:
            self._prune([])
        except OSError as error:
            if error.errno == errno.EINVAL:  # a notification that this kernel does not know
                return False
            raise
        return True

    # In the thread.

    def _run(self) -> None:
        while (ask := self._waiting.get()) is not None:
            if self._descriptor is None:
                return
            try:
                ask()
            except OSError as error:
                log.info("the kernel refused to give references back: %s", error)

    def _prune(self, inos: Sequence[int]) -> None:
        body = _PRUNE.pack(len(inos), 0, 0) + struct.pack(f"={len(inos)}Q", *inos)
        message = _HEADER.pack(_HEADER.size + len(body), NOTIFY_PRUNE, 0) + body
        with self._descriptor_lock:
            descriptor = self._descriptor
            if descriptor is not None:
                os.write(descriptor, message)

    def _forget_names(self, names: Sequence[Invalidation]) -> None:
        for name in names:
            if self._descriptor is None:
                return
            try:
                self._notify(name)
            except OSError as error:
                if error.errno != errno.ENOENT:  # it had nothing cached
                    raise


def _names_of(node: Node) -> Sequence[Invalidation]:
    """Those that it may be asked to forget."""
    if node.is_directory:
        return ()
    return [Invalidation(parent.ino, name) for parent, name in node.edges]


def _find_fuse_descriptor() -> int:
    """This process's only one of /dev/fuse: the mount's."""
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        try:
            found = os.fstat(number)
        except OSError:
            continue  # that of the listing itself
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == _FUSE_DEVICE:
            return number
    raise FileNotFoundError(errno.ENOENT, "the mount has no descriptor of /dev/fuse")

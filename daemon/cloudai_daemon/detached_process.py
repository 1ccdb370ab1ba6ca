"""Starting a process that outlives this one: the mount daemon, a local master."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cloudai_daemon.process_identity import ProcessIdentity


def start_detached(
    command: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> ProcessIdentity:
    """Starts the command in a session of its own, with these three descriptors and no others.

    Raises OSError when it cannot be executed.
    """
    return _spawn(command, environment, (stdin, stdout, stderr), setsid=True)


def start_to_be_detached(
    command: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> ProcessIdentity:
    """The same in the process group of who calls, which the command leaves when it is ready: `detach`."""
    return _spawn(command, environment, (stdin, stdout, stderr), setsid=False)


def detach() -> None:
    """Gives this process a session of its own, unless it has one."""
    if os.getpid() != os.getpgrp():
        os.setsid()


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], standard: tuple[int, int, int], *, setsid: bool
) -> ProcessIdentity:
    # posix_spawn rather than subprocess: a Popen object wants its child waited for, and this one is not.
    pid = os.posix_spawn(
        command[0],
        list(command),
        environment,
        file_actions=[
            *((os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(standard)),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _find_inheritable()),
        ],
        setsid=setsid,
        setsigmask=(),  # whatever this process keeps back
    )
    return ProcessIdentity.of_child(pid)


def _find_inheritable() -> list[int]:
    """What whoever called this program left open for its children: flock(1) its lock, a shell a pipe. The process
    would hold it for as long as it lives.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names, not paths
        with suppress(OSError):  # the listing's own is closed by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found

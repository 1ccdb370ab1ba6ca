"""Whether a mount's tree answers, and its knobs in the kernel."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cloudai_daemon.doctor.findings import Finding, in_ms, note, ok, problem
from cloudai_daemon.mount_table import PROBE_SECONDS_MAX, within_bound
from cloudai_fusefs.kernel_knobs import (
    FUSECTL_MOUNT_COMMAND,
    KernelKnob,
)


def check_answer(mount_point: Path, seconds: float = PROBE_SECONDS_MAX) -> Finding:
    check = "tree"
    began_seconds = time.monotonic()
    try:
        # Opened and listed: a stat is answered by the kernel for as long as it remembers the attributes.
        within_bound(lambda: os.listdir(mount_point), seconds)  # noqa: PTH208  # iterdir would not ask yet
    except TimeoutError:
        return problem(
            check,
            f"does not answer within {seconds:.0f} s",
            "`cloudai status` tells of the master; the log is daemon.log in the state directory",
        )
    except PermissionError:
        return note(check, "may not be looked into by this user", "look as the user who mounted it")
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return problem(
                check, "its daemon has ended", f"`cloudai umount {mount_point}`, and mount it again"
            )
        return problem(check, error.strerror or str(error), "see daemon.log in the state directory")
    return ok(check, f"answers in {in_ms(time.monotonic() - began_seconds)}")


CheckKnob: TypeAlias = Callable[[KernelKnob], Finding]


def check_read_ahead(knob: KernelKnob) -> Finding:
    present = knob.read()
    if present is None:
        return note(knob.name, "cannot be seen", f"{knob.path} should say {knob.wanted}")
    if present < knob.wanted:
        return note(knob.name, f"is {present}, reads are faster with {knob.wanted}", _command(knob))
    return ok(knob.name, f"is {present}")


def check_background(knob: KernelKnob) -> Finding:
    present = knob.read()
    if present is None:
        return note(
            knob.name,
            "cannot be seen, and is the kernel's small one unless it was raised",
            f"`{FUSECTL_MOUNT_COMMAND}` as root before mounting",
        )
    if present < knob.wanted:
        return note(knob.name, f"is {present}, several readers are faster with {knob.wanted}", _command(knob))
    return ok(knob.name, f"is {present}")


def _command(knob: KernelKnob) -> str:
    return f"`echo {knob.wanted} | sudo tee {knob.path}`"

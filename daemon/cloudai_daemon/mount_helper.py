"""What mount(8) runs for `mount -t cloudai`, for `mount -t fuse.cloudai` and for lines of fstab.

Called as `/sbin/mount.cloudai SOURCE DIR [-sfnvrw] [-o OPTIONS] [-t TYPE]`, without HOME and PATH. Exits with 0 once
the tree answers, with 1 for words that are not valid and with 32 when nothing was mounted, and then says why in
one line on standard error. `helper_installation` puts it into place.
"""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_lookup import find_at
from cloudai_daemon.mount_refusals import warn_of_full_cache
from cloudai_daemon.mount_table import FILE_SYSTEM_TYPE, find_mounted
from cloudai_daemon.mounting import (
    is_readable_by_others,
    prepare_mount,
    rehearse_mount,
    resolve_config,
    resolve_mount_point,
    start_mount,
)
from cloudai_daemon.option_sources import gather_options
from cloudai_daemon.options import parse_options, refuse_unknown_option
from cloudai_daemon.places import SYSTEM_PATH

HELPER_NAME: Final = "mount.cloudai"

_USAGE: Final = f"usage: {HELPER_NAME} SOURCE DIR [-sfnvrw] [-o OPTIONS]"
_REMOUNT_SECONDS_MAX: Final = 30.0
# What the kernel shows of a FUSE mount, and mount(8) passes on when it is mounted anew.
_SHOWN_NAMES: Final = frozenset({"user_id", "group_id", "default_permissions", "max_read", "blksize"})


@dataclass(kw_only=True)
class HelperCall:
    """The words of one call."""

    source: str
    directory: Path
    words: list[str]
    """Of all `-o`, in their order."""
    is_sloppy: bool = False
    is_rehearsal: bool = False
    is_verbose: bool = False


def parse_call(arguments: Sequence[str]) -> HelperCall:
    """Raises CommandFailed (usage)."""
    try:
        switches, places = getopt.gnu_getopt(list(arguments), "sfnvrwo:t:")
    except getopt.GetoptError as error:
        raise CommandFailed(ExitCode.USAGE, f"{error}; {_USAGE}") from error
    if len(places) != 2:
        raise CommandFailed(ExitCode.USAGE, _USAGE)
    call = HelperCall(source=places[0], directory=Path(places[1]), words=[])
    for switch, value in switches:
        match switch:
            case "-s":
                call.is_sloppy = True
            case "-f":
                call.is_rehearsal = True
            case "-v":
                call.is_verbose = True
            case "-r":
                call.words.append("ro")
            case "-o":
                call.words += filter(None, value.split(","))
            case _:
                pass  # -n: there is no mtab to spare; -w: the default; -t: one type is what this is
    return call


def mount(call: HelperCall) -> None:
    """Mounts, or finds out whether it could. Raises CommandFailed."""
    if "remount" in call.words:
        remount(call)
        return
    # mount(8) says `rw` in every call that does not say `ro`: nobody asked for it, whatever a file says.
    words = ",".join(word for word in call.words if word != "rw")
    config = resolve_config(call.source, call.directory, gather_options(words, _pass_by_or_refuse(call)))
    if config.token_file is not None and is_readable_by_others(config.token_file):
        say(f"warning: {config.token_file} can be read by others; `chmod 600` it")
    if call.is_rehearsal:
        rehearse_mount(config)
        return
    prepare_mount(config)
    warn_of_full_cache(config.cache_dir, say)
    entry = start_mount(config)
    if call.is_verbose:
        sys.stdout.write(
            f"{HELPER_NAME}: {entry.source} is at {entry.mount_point} (pid {entry.process.pid})\n"
        )


def remount(call: HelperCall) -> None:
    """Has the kernel take `ro`, `rw` and its other words anew. Raises CommandFailed.

    The mount daemon keeps the options that it began with, since fstab's are passed here whether they have changed
    or not.
    """
    words = [word for word in call.words if word.partition("=")[0] not in _SHOWN_NAMES | {"remount"}]
    options = parse_options(",".join(words), _pass_by_or_refuse(call))
    mount_point = resolve_mount_point(call.directory)
    mounted = find_mounted(mount_point)
    if mounted is None or mounted.file_system_type != FILE_SYSTEM_TYPE:
        raise CommandFailed(ExitCode.MOUNT_FAILED, f"{mount_point}: no CloudAI mount to be mounted anew")
    is_read_only = options.get("read_only", False)
    entry = find_at(mount_point)
    if entry is not None and entry.read_only and not is_read_only:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{mount_point}: it was mounted ro: unmount it, and mount it rw"
        )
    if call.is_rehearsal:
        return
    told = ["remount", "ro" if is_read_only else "rw", "nosuid", "nodev", *options.get("kernel_words", ())]
    command = ["mount", "--internal-only", "-o", ",".join(told), "--", str(mount_point)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_REMOUNT_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            ExitCode.MOUNT_FAILED, f"{mount_point}: mounting anew took over {_REMOUNT_SECONDS_MAX:.0f} s"
        ) from error
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[:1] or [f"mount(8) ended with status {done.returncode}"]
        raise CommandFailed(ExitCode.MOUNT_FAILED, why[0].removeprefix("mount: "))


def _pass_by_or_refuse(call: HelperCall) -> Callable[[str], None]:
    """What becomes of an unknown option."""
    if not call.is_sloppy:
        return refuse_unknown_option

    def pass_by(name: str) -> None:
        if call.is_verbose:
            say(f"unknown mount option {name!r} is passed by")

    return pass_by


def say(line: str) -> None:
    """One line for a person."""
    sys.stderr.write(f"{HELPER_NAME}: {line}\n")


def run_helper(arguments: Sequence[str]) -> int:
    """One call of mount(8); its exit status."""
    try:
        mount(parse_call(arguments))
    except CommandFailed as error:
        say(error.line)
        return ExitCode.USAGE if error.exit_code == ExitCode.USAGE else ExitCode.MOUNT_FAILED
    except OSError as error:
        say(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        return ExitCode.MOUNT_FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.MOUNT_FAILED
    return ExitCode.OK


def main() -> None:
    """What the script in /sbin runs."""
    os.environ.setdefault("PATH", SYSTEM_PATH)
    sys.exit(run_helper(sys.argv[1:]))


if __name__ == "__main__":
    main()

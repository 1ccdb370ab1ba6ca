"""The SOURCE of a mount: a master's address, and which part of its tree is mounted.

Pure parsing: `HOST[:PORT][/USER[/TASK[/RUN]]]` in, the same with everything spelled out.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_model.errors import InvalidRequest
from cloudai_model.names import check_managed_name, check_run_name

MASTER_PORT_DEFAULT: Final = 7443

_NAME_CHECKS: Final = (check_managed_name, check_managed_name, check_run_name)
"""Of a user, a task and a run."""


def parse_source(text: str) -> str:
    """`host:port/user/task/run` of a SOURCE, of which all but the host may be missing; `[::1]:7443` for IPv6.

    Raises CommandFailed (usage).
    """
    address, _, path = text.partition("/")
    names = path.removesuffix("/").split("/") if path else []
    if len(names) > len(_NAME_CHECKS):
        raise CommandFailed(ExitCode.USAGE, f"{text!r}: a user, a task or a run is mounted, nothing in a run")
    for check, name in zip(_NAME_CHECKS, names, strict=False):
        try:
            check(name)
        except InvalidRequest as error:
            raise CommandFailed(ExitCode.USAGE, f"{text!r}: {error}") from error
    return "/".join([_parse_address(address), *names])


def _parse_address(text: str) -> str:
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?", text, re.ASCII)
    plain = re.fullmatch(r"([A-Za-z0-9._-]+)(?::(\d+))?", text, re.ASCII)
    match = bracketed or plain
    if match is None:
        raise CommandFailed(
            ExitCode.USAGE, f"{text!r} is no master's address: expected HOST[:PORT][/USER[/TASK[/RUN]]]"
        )
    port = int(match[2] or MASTER_PORT_DEFAULT)
    if not 0 < port < 65536:
        raise CommandFailed(ExitCode.USAGE, f"{text!r}: a port is a number from 1 to 65535")
    return f"[{match[1]}]:{port}" if bracketed else f"{match[1]}:{port}"


def is_loopback(address: str) -> bool:
    """Whether the host of a `host:port` is this machine by its name or address alone, without asking DNS."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

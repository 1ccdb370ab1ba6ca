"""The mount options: one table of the words that `-o`, fstab, files and the environment share.

Pure parsing: words in, values in SI units out. Who mounts and what is there is decided in `mounting`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict, cast

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_source import is_loopback
from cloudai_daemon.unix_sockets import SOCKET_PATH_BYTES_MAX
from cloudai_fusefs.mount_control import (
    CACHE_BYTES_DEFAULT,
    DRAIN_SECONDS_DEFAULT,
    MEMORY_BYTES_DEFAULT,
    MEMORY_BYTES_MIN,
    NAMES_DEFAULT,
    NAMES_MIN,
    TIMEO_SECONDS_DEFAULT,
    UNMOUNT_DRAIN_SECONDS_DEFAULT,
)

_UNIT_BYTES: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE_PATTERN: Final = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION_PATTERN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
# A week: whatever is meant by more is better said by not waiting at all.
_TIMEO_SECONDS_MAX: Final = 7 * 86400.0
_ID_MAX: Final = 2**32 - 2  # the highest 32-bit number is "no id" to chown(2)


class MountOptions(TypedDict, total=False):
    """What was given; the keys are fields of MountConfig."""

    token_file: Path
    state_dir: Path
    cache_dir: Path
    cache_bytes_max: int
    memory_bytes_max: int
    names_max: int
    timeo_seconds: float
    drain_seconds: float
    staging_bytes_max: int
    uid: int
    gid: int
    umask: int
    read_only: bool
    allow_other: bool
    xattr: bool
    insecure: bool
    ca_file: Path
    metrics_address: str
    supervise: bool
    kernel_words: tuple[str, ...]


def parse_size(text: str) -> int:
    """Bytes of `20G`, `512M`, `1.5GiB` or a plain number; K, M, G, T are powers of 1024."""
    match = _SIZE_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError("expected a size such as 20G")
    return int(float(match[1]) * _UNIT_BYTES[match[2].upper()])


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h` or `1d`."""
    match = _DURATION_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError("expected a time such as 90, 10m or 2h")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _parse_limit(text: str) -> int:
    size_bytes = parse_size(text)
    if size_bytes == 0:
        raise ValueError("must be more than nothing")
    return size_bytes


def _parse_memory(text: str) -> int:
    size_bytes = parse_size(text)
    if size_bytes < MEMORY_BYTES_MIN:
        raise ValueError(f"must be at least {MEMORY_BYTES_MIN // 1024**2}M")
    return size_bytes


def _parse_names(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not NAMES_MIN <= int(text) < 1 << 32:
        raise ValueError(f"expected a number of names, at least {NAMES_MIN}")
    return int(text)


def _parse_timeo(text: str) -> float:
    seconds = parse_duration(text)
    if not 0 < seconds <= _TIMEO_SECONDS_MAX:
        raise ValueError("must be more than nothing and at most 7d")
    return seconds


def _parse_drain(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > _TIMEO_SECONDS_MAX:
        raise ValueError("must be at most 7d")
    return seconds


def _parse_id(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > _ID_MAX:
        raise ValueError("expected a numeric id")
    return int(text)


def _parse_umask(text: str) -> int:
    if not re.fullmatch(r"0?o?[0-7]{1,4}", text, re.ASCII) or int(text, 8) > 0o777:
        raise ValueError("expected octal permission bits such as 022")
    return int(text, 8)


def _parse_path(text: str) -> Path:
    if not text:
        raise ValueError("expected a path")
    return Path(text).expanduser().absolute()


def _parse_metrics_address(text: str) -> str:
    """`127.0.0.1:9100`, `[::1]:9100` or a socket's path, as MountConfig has it."""
    if text.startswith("/"):
        if len(os.fsencode(text)) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"the path of a socket has at most {SOCKET_PATH_BYTES_MAX} bytes")
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
        raise ValueError("expected HOST:PORT or the absolute path of a socket")
    if not is_loopback(text):
        raise ValueError("metrics are served on the loopback only: 127.0.0.1:PORT, or a socket")
    return f"127.0.0.1:{port}" if host == "localhost" else text


@dataclass(frozen=True, kw_only=True)
class OptionSpec:
    """One row of the table."""

    name: str
    field: str
    """Of MountConfig."""
    parse: Callable[[str], object] | None = None
    """Of the value; raises ValueError saying what was expected. None: a flag, which means `flag_value`."""
    flag_value: bool = True
    default: str
    help: str
    takes_number: bool = False
    """Whether a file may say it as a number: bytes, seconds or an id."""

    @property
    def is_path(self) -> bool:
        return self.parse is _parse_path


OPTION_SPECS: Final = (
    OptionSpec(
        name="token_file",
        field="token_file",
        parse=_parse_path,
        default="the token in $CLOUDAI_TOKEN",
        help="file that holds the token; read again whenever the master refuses it",
    ),
    OptionSpec(
        name="state_dir",
        field="state_dir",
        parse=_parse_path,
        default="/var/lib/cloudai/mounts/NAME, or below $XDG_STATE_HOME",
        help="journal, staged files and log of this one mount",
    ),
    OptionSpec(
        name="cache_dir",
        field="cache_dir",
        parse=_parse_path,
        default="/var/cache/cloudai, or below $XDG_CACHE_HOME",
        help="what has been read; several mounts may share it",
    ),
    OptionSpec(
        name="cache_size",
        field="cache_bytes_max",
        parse=_parse_limit,
        default=f"{CACHE_BYTES_DEFAULT // 1024**3}G",
        help="limit of the contents that are cached, in bytes or with K, M, G, T; a thirty-second of it more for names",
        takes_number=True,
    ),
    OptionSpec(
        name="memory",
        field="memory_bytes_max",
        parse=_parse_memory,
        default=f"{MEMORY_BYTES_DEFAULT // 1024**2}M",
        help=(
            "limit of file contents in the daemon's memory, in bytes or with K, M, G;"
            f" at least {MEMORY_BYTES_MIN // 1024**2}M"
        ),
        takes_number=True,
    ),
    OptionSpec(
        name="names",
        field="names_max",
        parse=_parse_names,
        default=str(NAMES_DEFAULT),
        help=(
            "how many names in sealed runs stay in the daemon's memory, at about a KiB each;"
            " beyond it the runs that were looked into longest ago are let go of"
        ),
        takes_number=True,
    ),
    OptionSpec(
        name="staging_size",
        field="staging_bytes_max",
        parse=_parse_limit,
        default="what is free on the disk of state_dir, less a reserve",
        help="limit of what is written and not yet uploaded; when it is reached, writers wait for uploads",
        takes_number=True,
    ),
    OptionSpec(
        name="timeo",
        field="timeo_seconds",
        parse=_parse_timeo,
        default=f"{TIMEO_SECONDS_DEFAULT:.0f}",
        help="the longest wait of one operation for the master, in seconds or with m, h, d",
        takes_number=True,
    ),
    OptionSpec(
        name="drain",
        field="drain_seconds",
        parse=_parse_drain,
        default=f"{DRAIN_SECONDS_DEFAULT:.0f}, for `cloudai umount` {UNMOUNT_DRAIN_SECONDS_DEFAULT / 3600:.0f}h",
        help="how long a mount that ends waits for uploads; what is left is sent by the next mount",
        takes_number=True,
    ),
    OptionSpec(
        name="uid",
        field="uid",
        parse=_parse_id,
        default="as stored for root, yours for others",
        help="numeric owner that everything is shown with",
        takes_number=True,
    ),
    OptionSpec(
        name="gid",
        field="gid",
        parse=_parse_id,
        default="as stored for root, yours for others",
        help="numeric group that everything is shown with",
        takes_number=True,
    ),
    OptionSpec(
        name="umask",
        field="umask",
        parse=_parse_umask,
        default="none",
        help="octal permission bits to hide, such as 022",
    ),
    OptionSpec(name="ro", field="read_only", default="", help="refuse every change"),
    OptionSpec(name="rw", field="read_only", flag_value=False, default="yes", help="the opposite of ro"),
    OptionSpec(
        name="allow_other",
        field="allow_other",
        default="",
        help="let other users in; needs user_allow_other in /etc/fuse.conf unless root mounts",
    ),
    OptionSpec(
        name="supervise",
        field="supervise",
        default="",
        help="a mount whose daemon dies is mounted again at once",
    ),
    OptionSpec(
        name="xattr",
        field="xattr",
        default="",
        help="extended attributes of `user.` are kept; a look at those of each of 10,000 files takes a second then",
    ),
    OptionSpec(name="insecure", field="insecure", default="", help="no TLS; the master must be on loopback"),
    OptionSpec(
        name="ca",
        field="ca_file",
        parse=_parse_path,
        default="the system's certificates",
        help="PEM file of the authority that signed the master's certificate",
    ),
    OptionSpec(
        name="metrics",
        field="metrics_address",
        parse=_parse_metrics_address,
        default="nowhere",
        help="where Prometheus metrics are served: HOST:PORT on the loopback, or a socket's path",
    ),
)

SPEC_BY_NAME: Final[Mapping[str, OptionSpec]] = {spec.name: spec for spec in OPTION_SPECS}

# Words that the kernel keeps to, and the ones they take back: of each two the last counts.
_KERNEL_WORDS: Final = {
    "noexec": "exec",
    "exec": "noexec",
    "noatime": "atime",
    "atime": "noatime",
}
# What the kernel takes for granted unless told otherwise, and FUSE has no words for.
_KERNEL_DEFAULTS: Final = frozenset({"exec", "atime"})

# What mount(8) and fstab pass on although it means nothing to a helper, and what is always so here: a mount is
# nosuid and nodev (what others wrote must not run as them, and devices cannot be kept in a run), reading sets
# no access time, and `async` is what writing is. (`nodiratime` could not be passed on either: libfuse 3.14 refuses
# a mount with it.)
_IGNORED_NAMES: Final = frozenset(
    {
        *("_netdev", "auto", "noauto", "defaults", "nofail", "comment"),
        *("user", "users", "nouser", "owner", "noowner", "group", "nogroup"),
        *("suid", "nosuid", "dev", "nodev", "async", "silent", "loud"),
        *("relatime", "norelatime", "strictatime", "nostrictatime"),
        *("diratime", "nodiratime", "lazytime", "nolazytime"),
    }
)


def refuse_unknown_option(name: str) -> None:
    """Raises CommandFailed (usage) that names the option."""
    known = ", ".join(SPEC_BY_NAME)
    raise CommandFailed(ExitCode.USAGE, f"unknown mount option {name!r}; known are {known}")


def parse_options(text: str, on_unknown: Callable[[str], None] = refuse_unknown_option) -> MountOptions:
    """What `-o a,b=c` gives; the last of a repeated option counts.

    Raises CommandFailed (usage) that names the option when its value is not valid, and what `on_unknown` raises
    for the name of one that is not known.
    """
    given: dict[str, object] = {}
    kernel_words: list[str] = []
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if word in _KERNEL_WORDS:
            kernel_words = [kept for kept in kernel_words if kept not in (word, _KERNEL_WORDS[word])]
            kernel_words.append(word)
        elif name in _IGNORED_NAMES or name.lower().startswith("x-"):
            continue
        elif (spec := SPEC_BY_NAME.get(name)) is not None:
            given[spec.field] = _parse_word(spec, value if equals else None)
        else:
            on_unknown(name)
    if kernel_words := [word for word in kernel_words if word not in _KERNEL_DEFAULTS]:
        given["kernel_words"] = tuple(kernel_words)
    # The table's fields are the keys, and each row parses to its field's type.
    return cast(MountOptions, given)


def _parse_word(spec: OptionSpec, value: str | None) -> object:
    if spec.parse is None:
        if value is not None:
            raise CommandFailed(ExitCode.USAGE, f"mount option {spec.name} takes no value")
        return spec.flag_value
    if value is None:
        raise CommandFailed(ExitCode.USAGE, f"mount option {spec.name} needs a value: {spec.name}=...")
    try:
        return spec.parse(value)
    except ValueError as error:
        raise CommandFailed(ExitCode.USAGE, f"mount option {spec.name}={value}: {error}") from error


def describe_options() -> str:
    """The table as text for `cloudai mount --help`."""
    lines = ["\b", "Mount options (-o NAME,NAME=VALUE,...):"]
    for spec in OPTION_SPECS:
        word = f"{spec.name}=" if spec.parse else spec.name
        default = f" [{spec.default}]" if spec.default else ""
        lines.append(f"  {word:<12} {spec.help}{default}")
    lines += [
        "Each may also be a key of the section [mount] of /etc/cloudai/config.toml, of ~/.config/cloudai/config.toml",
        "or of the file that $CLOUDAI_CONFIG names, or $CLOUDAI_<OPTION>; later ones count, the command line last.",
        "`cloudai config` shows the outcome.",
    ]
    return "\n".join(lines)

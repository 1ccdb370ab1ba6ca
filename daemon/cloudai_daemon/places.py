"""Where things are kept: state, cache and runtime files, as root and as anybody else.

Root follows the Filesystem Hierarchy Standard, others the XDG base directories.
"""

from __future__ import annotations

import hashlib
import os
import string
from contextlib import suppress
from pathlib import Path
from typing import Final

_PLAIN_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "_.")
# NAME_MAX, less room for a suffix such as `.json`.
_ESCAPED_BYTES_MAX: Final = 200

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""For a process without PATH, as mount(8)'s helpers are: fusermount3, umount, unshare are there."""

_RUNTIME_DIR_VARIABLE: Final = "CLOUDAI_RUNTIME_DIR"


def is_root() -> bool:
    return os.geteuid() == 0


def escape_path(path: Path) -> str:
    """A file name that stands for an absolute path, and for no other: `/mnt/cloudai` is `mnt-cloudai`.

    The rule of systemd-escape --path; a name that would be too long ends in a digest instead.
    """
    text = str(path).strip("/") or "-"
    escaped = "".join(_escape_character(character) for character in text)
    if len(escaped) <= _ESCAPED_BYTES_MAX:
        return escaped
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return f"{escaped[: _ESCAPED_BYTES_MAX - 33]}-{digest}"


def _escape_character(character: str) -> str:
    if character in _PLAIN_CHARACTERS:
        return character
    if character == "/":
        return "-"
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def short_name_of(path: Path) -> str:
    """Sixteen characters that stand for a path where its own name may be too long, as in a socket's path."""
    return hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()


def state_home() -> Path:
    """What must survive a reboot: staged files, journals, tokens, a local master's data."""
    return Path("/var/lib/cloudai") if is_root() else _xdg("XDG_STATE_HOME", ".local/state")


def mount_state_dir(mount_point: Path) -> Path:
    return state_home() / "mounts" / escape_path(mount_point)


def cache_home() -> Path:
    """What may be deleted at any time."""
    return Path("/var/cache/cloudai") if is_root() else _xdg("XDG_CACHE_HOME", ".cache")


def runtime_dir() -> Path:
    """What is meaningless after a reboot: the registry of live mounts, sockets. $CLOUDAI_RUNTIME_DIR is for
    machines without a writable /run.
    """
    if chosen := os.environ.get(_RUNTIME_DIR_VARIABLE):
        return Path(chosen)
    if is_root():
        return Path("/run/cloudai")
    runtime_home = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime_home) / "cloudai" if runtime_home else state_home() / "run"


def runtime_dirs_to_search() -> list[Path]:
    """Ours first; then root's, whose mounts others may look at too."""
    found = [runtime_dir()]
    if not is_root() and _RUNTIME_DIR_VARIABLE not in os.environ:
        found.append(Path("/run/cloudai"))
    return found


def config_files() -> list[Path]:
    """Where options are looked for, the machine's first: later ones count. They need not be there."""
    found = [Path("/etc/cloudai/config.toml")]
    # Who has no home, as mount(8)'s helper may have none, has no file there.
    with suppress(RuntimeError):
        found.append(_xdg("XDG_CONFIG_HOME", ".config") / "config.toml")
    return found


def _xdg(variable: str, fallback: str) -> Path:
    home = os.environ.get(variable, "")
    # The specification: a relative path in these variables is invalid and to be ignored.
    base = Path(home) if home.startswith("/") else Path.home() / fallback
    return base / "cloudai"


def make_private_dir(path: Path) -> None:
    """Makes a directory and its parents, all of them new ones 0700; one that is there keeps its mode."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_private_dir(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)

"""Puts mount(8)'s helpers and systemd's units into place, and takes them away again.

mount(8) looks for `mount.TYPE` in /sbin alone. What is put there is a script that names this installation's
Python, since a helper is called without PATH; everything else stays in the package, and so do the units' texts. A
file of somebody else is never touched.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from cloudai_daemon.exit_codes import CommandFailed, ExitCode

HELPER_DIR: Final = Path("/sbin")
"""Where mount(8) looks."""

UNIT_DIR: Final = Path("/etc/systemd/system")
"""Where systemd looks for what an administrator adds."""

HELPER_NAMES: Final = ("mount.cloudai", "mount.fuse.cloudai")
"""For `mount -t cloudai`, and for the type that the kernel shows such a mount with."""

UNIT_NAMES: Final = ("cloudai-mount@.service", "cloudai-master.service", "cloudai-volume-plugin.service")

_MARK: Final = "# Written by `cloudai install-helper`"
_SCRIPT: Final = """\
#!/bin/sh
{mark}: what mount(8) runs for `mount -t cloudai`.
python={python}
if ! [ -x "$python" ]; then
    echo "${{0##*/}}: $python cannot be run: install CloudAI FS again, or \\`rm $0\\`" >&2
    exit 32
fi
exec "$python" -I -m cloudai_daemon.mount_helper "$@"
"""
_TRIAL_SECONDS_MAX: Final = 30.0


def install_helpers(directory: Path, python: Path = Path(sys.executable)) -> list[Path]:
    """Writes the helpers, or replaces older ones; their paths.

    Raises CommandFailed for a file that is not ours and for a Python that cannot run the helper; OSError.
    """
    _try_out(python)
    script = _SCRIPT.format(mark=_MARK, python=shlex.quote(str(python)))
    return _write([(directory / name, script) for name in HELPER_NAMES], mode=0o755)


def install_units(directory: Path, program_dir: Path = Path(sys.executable).parent) -> list[Path]:
    """Writes the units, or replaces older ones; their paths.

    They run the programs in `program_dir`. Raises as install_helpers.
    """
    texts = files("cloudai_daemon") / "units"
    programs = str(program_dir).replace("%", "%%")  # else a specifier of systemd's
    return _write(
        [
            (directory / name, f"{_MARK}.\n" + (texts / name).read_text().replace("@BIN@", programs))
            for name in UNIT_NAMES
        ],
        mode=0o644,
    )


def remove_installed(helper_dir: Path, unit_dir: Path) -> list[Path]:
    """Removes what is there of both; the paths. Raises CommandFailed for a file that is not ours, OSError."""
    places = [helper_dir / name for name in HELPER_NAMES] + [unit_dir / name for name in UNIT_NAMES]
    paths = [path for path in places if os.path.lexists(path)]
    for path in paths:
        _require_ours(path)
    for path in paths:
        path.unlink()
    return paths


def _write(texts: Sequence[tuple[Path, str]], *, mode: int) -> list[Path]:
    """All or, where one of the places is somebody else's, none."""
    for path, _ in texts:
        _require_ours(path)
    for path, text in texts:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text)
            temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return [path for path, _ in texts]


def _require_ours(path: Path) -> None:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    if _MARK not in text:
        raise CommandFailed(ExitCode.FAILED, f"{path} is not of CloudAI FS: it stays as it is")


def _try_out(python: Path) -> None:
    """Calls the helper as mount(8) will, with nothing in its environment and nothing to do."""
    command = [str(python), "-I", "-c", "import cloudai_daemon.mount_helper"]
    try:
        done = subprocess.run(
            command, env={}, capture_output=True, text=True, timeout=_TRIAL_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(ExitCode.FAILED, f"{python}: no answer in {_TRIAL_SECONDS_MAX:.0f} s") from error
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise CommandFailed(ExitCode.FAILED, f"{python} cannot run the helper: {why[0]}")

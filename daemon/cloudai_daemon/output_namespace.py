"""/output of a run: the run's directory, bound in a mount namespace that only the command sees.

Relies on util-linux (`unshare`, `mount`) and on being root. Nothing is mounted outside that namespace, so
there is nothing to take away afterwards.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloudai_daemon.places import is_root

OUTPUT_DIR: Final = Path("/output")

_PROBE_SECONDS_MAX: Final = 10.0
# slave: what is mounted on the machine later appears inside, the bind mount inside does not appear outside.
_UNSHARE: Final = ("unshare", "--mount", "--propagation", "slave", "--")
_BIND: Final = 'mount --bind -- "$1" "$2"'


class NamespaceRefused(Exception):
    """Why there can be no /output here, in a few words."""


def prepare_output_namespace(run_dir: Path) -> None:
    """Accept a machine where the run's directory can be put on /output; makes that directory if missing.

    Tried once for real, so that a refusal is known before the command starts. Raises NamespaceRefused.
    """
    if not is_root():
        raise NamespaceRefused("only root may mount")
    try:
        OUTPUT_DIR.mkdir(mode=0o755, exist_ok=True)
        command = [*_UNSHARE, "sh", "-c", _BIND, "sh", str(run_dir), str(OUTPUT_DIR)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS_MAX, check=False
        )
    except OSError as error:
        raise NamespaceRefused(f"{error.filename}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise NamespaceRefused(f"unshare took over {_PROBE_SECONDS_MAX:.0f} s") from error
    if done.returncode != 0:
        last_line = done.stderr.strip().splitlines()[-1:] or [f"unshare ended with {done.returncode}"]
        raise NamespaceRefused(last_line[0])


def wrap_in_namespace(command: Sequence[str], run_dir: Path) -> list[str]:
    """The command line that executes the command, as the same process, with run_dir on /output."""
    script = f'{_BIND} && shift 2 && exec "$@"'
    return [*_UNSHARE, "sh", "-c", script, "sh", str(run_dir), str(OUTPUT_DIR), *command]

"""What the exit statuses of `cloudai` mean, and the one exception that carries them out of a command."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Every status that `cloudai` itself gives; `cloudai run` otherwise passes its command's on."""

    OK = 0
    USAGE = 1
    """The command line is not valid; nothing was tried. 1 because mount(8) says so."""
    PROBLEMS_FOUND = 1
    """`cloudai doctor`: something needs a person."""
    FAILED = 2
    """The request was refused, nothing answered it, or a part of it could not be done."""
    MOUNT_FAILED = 32
    """Nothing was mounted, or unmounted. 32 because mount(8) says so."""
    NOT_DURABLE = 75
    """Data is still staged on this machine only: nothing is lost, try again (EX_TEMPFAIL of sysexits.h)."""
    NOT_STARTED = 125
    """`cloudai run` could not make a run: the command was not started (as in docker run)."""
    NOT_EXECUTABLE = 126
    """`cloudai run`: the command was found and could not be executed."""
    NOT_FOUND = 127
    """`cloudai run`: no such command."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


SIGNALLED_BASE = 128
"""`cloudai run`: a command killed by signal N ends as 128 + N, as in a shell."""

EPILOG = """\b
Exit status:
    0    done
    1    the command line is not valid; doctor: there are problems
    2    the request was refused, nothing answered it, or a part of it failed
   32    could not be mounted or unmounted
   75    data is not durable yet: it is staged on this machine, nothing is lost
  125    run: no run could be made, the command was not started
  126    run: the command could not be executed
  127    run: there is no such command
128+N    run: the command was ended by signal N
Otherwise `cloudai run` exits with the status of its command.
"""


class CommandFailed(Exception):
    """Ends a command: `line` goes to standard error as it is, without a traceback."""

    def __init__(self, exit_code: int, line: str) -> None:
        super().__init__(line)
        self.exit_code = exit_code
        self.line = line

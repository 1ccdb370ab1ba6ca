"""What can go wrong with one contender without ending the benchmark: each is a line in the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class BenchmarkError(Exception):
    """The base of all of them; its text stands in the report."""


class CommandFailed(BenchmarkError):
    """A command ended with another status than 0, or could not be started (status None)."""

    def __init__(self, *, command: Sequence[str], status: int | None, said: str) -> None:
        ended = "could not be started" if status is None else f"exit status {status}"
        super().__init__(f"{shlex.join(command)}: {ended}: {said.strip()}")
        self.command = command
        self.status = status
        self.said = said


class TookTooLong(BenchmarkError):
    """Something did not happen within its bound."""

    def __init__(self, *, what: str, seconds_max: float) -> None:
        super().__init__(f"not within {seconds_max:g} s: {what}")
        self.what = what
        self.seconds_max = seconds_max


class WrongAnswer(BenchmarkError):
    """A contender answered with something else than what was stored."""

    def __init__(self, *, what: str) -> None:
        super().__init__(f"wrong answer: {what}")
        self.what = what


class WorkFailed(BenchmarkError):
    """The work itself raised an error, in the words of the process that did it."""

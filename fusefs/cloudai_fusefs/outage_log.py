"""Says in the log what is tried again and again until it succeeds: half a day without the master would rotate all else
out of it.
"""

from __future__ import annotations

import logging

from cloudai_model.errors import CloudAIError


class OutageLog:
    """Of one thing that is tried: its first failure is logged, and each of another kind, until it succeeds."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: type[CloudAIError] | None = None

    def note_failure(self, what_failed: str, error: CloudAIError) -> None:
        """`what_failed`: as the beginning of a sentence that ends with the error."""
        if self._told is not type(error):
            self._told = type(error)
            self._log.info("%s: %s", what_failed, error)

    def note_success(self) -> None:
        """The next failure is news."""
        self._told = None

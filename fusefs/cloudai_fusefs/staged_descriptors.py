"""Which staged files of a mount have their descriptors open: those in use, and a bounded number at rest.

Days offline leave tens of thousands of staged files, and a process may have as few as 1024 descriptors. A file at
rest is opened again when it is used: 10 us. What was opened first is closed first: writes and reads through an open
descriptor cost nothing here.
"""

from __future__ import annotations

import resource
from typing import Final, Protocol

from cloudai_fusefs.descriptor_closer import DescriptorCloser

FILES_MAX: Final = 2048
"""With open descriptors at rest: two batches of commits, so that files that come and go at once are opened once."""

LIMIT_SHARE: Final = 1 / 8
"""The same of what the process may open. A file has two at most, and as many wait to be closed: 3/8 in all, and the
rest is for cached chunks, the kernel and the master."""


class StagedDescriptorsHolder(Protocol):
    """A staged file with open descriptors."""

    def rest(self) -> bool:
        """Closes them, until they are needed again. False: they are in use."""


class StagedDescriptors:
    """Of one mount. Used from its loop only.

    Invariant: after each opening, no more than `files_max` files have descriptors, or all that have are in use.
    """

    def __init__(self, files_max: int | None = None) -> None:
        """`files_max` None: as many as the process's limit leaves room for."""
        self._files_max = _default_files_max() if files_max is None else files_max
        self._holders: dict[StagedDescriptorsHolder, None] = {}  # in the order of their opening
        self.closer = DescriptorCloser(waiting_max=self._files_max)

    @property
    def holder_count(self) -> int:
        """How many staged files have descriptors open."""
        return len(self._holders)

    def note_opened(self, holder: StagedDescriptorsHolder) -> None:
        """It is the last that others are closed for."""
        self._holders[holder] = None
        if len(self._holders) <= self._files_max:
            return
        # Those in use are few: handlers and workers. They are passed over, and closed by a later opening.
        for other in list(self._holders):
            if other is not holder and other.rest() and len(self._holders) <= self._files_max:
                return

    def note_closed(self, holder: StagedDescriptorsHolder) -> None:
        """It has none any more."""
        self._holders.pop(holder, None)


def _default_files_max() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_MAX if limit == resource.RLIM_INFINITY else min(FILES_MAX, int(limit * LIMIT_SHARE))

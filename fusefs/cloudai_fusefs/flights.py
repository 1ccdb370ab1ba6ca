"""What is on its way to several readers at once, and asked for once."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from cloudai_fusefs.chunk_memory import Data
from cloudai_model.errors import MasterUnavailable


@dataclass(slots=True, eq=False)
class Flight:
    """Bytes on their way. Invariant: once `has_landed` is set, at most one of data and error is there;
    neither when the mount stopped before.
    """

    is_prefetch: bool = False
    is_awaited: bool = False
    has_landed: trio.Event = field(default_factory=trio.Event)
    data: Data | None = None
    error: Exception | None = None

    def land(self, data: Data) -> None:
        """The bytes are here, verified."""
        self.data = data
        self.has_landed.set()

    def end(self, error: Exception | None = None) -> None:
        """Nothing comes any more; after `land` nothing changes."""
        if not self.has_landed.is_set():
            self.error = error
            self.has_landed.set()

    async def wait(self) -> Data:
        """The bytes. Raises what they failed with. Cancelled: they still arrive for the others."""
        await self.has_landed.wait()
        if self.data is not None:
            return self.data
        raise self.error or MasterUnavailable("the mount is stopping")

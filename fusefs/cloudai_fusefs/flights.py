"""What is on its way to several readers at once, and asked for once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from cloudai_fusefs.chunk_memory import Data
from cloudai_fusefs.file_content import FileContent
from cloudai_model.errors import CloudAIError, MasterUnavailable


@dataclass(slots=True, eq=False)
class Flight:
    """Bytes on their way. Invariant: once `has_landed` is set, at most one of data and error is there;
    neither when the mount stopped before.
    """

    content: FileContent
    """Of the file in whose name they are asked for. Others of the same bytes may wait."""
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


async def wait_for_bytes_of(content: FileContent, flight: Flight, ask_again: Callable[[], Flight]) -> Data:
    """The bytes of the flight, or of one that `ask_again` returns where this was refused in another file's name.

    That file may be gone, or be damaged: it is not what the reader of this one is told. Raises and is cancelled as
    `Flight.wait`.
    """
    while True:
        try:
            return await flight.wait()
        except MasterUnavailable:
            raise  # whoever asks
        except CloudAIError:
            asked = flight.content
            if (asked.node_id, asked.generation) == (content.node_id, content.generation):
                raise
        flight = ask_again()

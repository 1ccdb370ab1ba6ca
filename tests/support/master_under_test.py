"""What the contract suite asks of a master, fake or real."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cloudai_fusefs.master_client import MasterClient


class Master(Protocol):
    """A master under test. Its users live as long as it, and other tests use them too."""

    def open(
        self, user: str, *, admin: bool = False, task_id: str = ""
    ) -> AbstractAsyncContextManager[MasterClient]:
        """A client with a token of this scope."""
        ...

    def damage_chunk(self, user: str, digest: bytes) -> None:
        """Flips a bit of the first byte of this stored chunk of the user's."""
        ...

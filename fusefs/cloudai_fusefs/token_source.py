"""The token that a mount shows to its master: read where it is kept, and again when it was refused."""

from __future__ import annotations

from collections.abc import Callable

import trio

from cloudai_model.errors import Unauthenticated


class TokenSource:
    """One token for all calls of a client."""

    def __init__(self, read: Callable[[], str]) -> None:
        """`read` may block and raise OSError: it is called in a worker thread."""
        self._read = read
        self._token: str | None = None
        self._reading = trio.Lock()

    async def current(self) -> str:
        """The token read last. Raises Unauthenticated where it cannot be read. Cancelled: nothing changed."""
        if self._token is None:
            async with self._reading:
                self._token = self._token or await self._read_again()
        return self._token

    async def another_than(self, refused: str) -> str | None:
        """The token that took the place of a refused one; None: there is none. Raises and cancelled as `current`.

        Calls are refused together: the first of them reads, the others find what it read.
        """
        async with self._reading:
            if self._token in (None, refused):
                self._token = await self._read_again()
            return None if self._token == refused else self._token

    async def _read_again(self) -> str:
        try:
            token = await trio.to_thread.run_sync(self._read)
        except UnicodeError as error:
            raise Unauthenticated("the token's file is not text") from error
        except OSError as error:
            # Not its errno: to the program it would say something of the file that it asked for.
            raise Unauthenticated(
                "the token cannot be read", file=str(error.filename or ""), error=str(error.strerror)
            ) from error
        if not (token.isascii() and token.isprintable()):
            raise Unauthenticated(
                "what stands where the token should be is not one"
            )  # gRPC would refuse to send it
        return token

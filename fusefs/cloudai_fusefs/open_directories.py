"""The directories that programs have open: what each handle lists, and where a reader goes on.

A handle lists the names that the directory had when its reading began; what has gone since is left out. One that nobody
has read yet keeps none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from cloudai_fusefs.namespace import Inode, Namespace
from cloudai_fusefs.node import Node

DOT_COUNT: Final = 2
"""`.` and `..`, which are listed first."""


@dataclass(slots=True)
class _OpenDirectory:
    directory: Inode
    names: Sequence[tuple[bytes, Inode]] | None = None  # nobody has read it
    holding: ExitStack = field(default_factory=ExitStack)
    """The names of its run, from the first reading on until it is closed."""


class OpenDirectories:
    """The directory handles of one mount. How long may be waited, the caller says."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._open: dict[int, _OpenDirectory] = {}
        self._next_handle = 1

    @property
    def count(self) -> int:
        """Open handles."""
        return len(self._open)

    async def open(self, directory: Inode) -> int:
        """A new handle. Raises as Namespace.load; cancelled, there is none."""
        await self._namespace.load(directory)
        handle = self._next_handle
        self._next_handle += 1
        self._open[handle] = _OpenDirectory(directory)
        return handle

    def directory_of(self, handle: int) -> Inode:
        return self._open[handle].directory

    def needs_look(self, handle: int, start: int) -> bool:
        """Whether `look` comes before the entries from this position on: at the beginning, as after rewinddir(3). From
        there on positions stay what they are.
        """
        return start == 0 or self._open[handle].names is None

    async def look(self, handle: int) -> None:
        """The handle lists what is in the directory now, at other positions than before. Raises NotADirectory, and as
        Namespace.load; cancelled, it lists what it did.
        """
        opened = self._open[handle]
        directory = opened.directory
        names = await self._namespace.list(directory)
        if opened.names is None and isinstance(directory, Node):
            opened.holding.enter_context(directory.tree.held())
        opened.names = names

    def entries(self, handle: int, start: int) -> Iterator[tuple[int, bytes, Inode]]:
        """What is listed from this position on, each with its own position, but for what is there no more."""
        opened = self._open[handle]
        directory, names = opened.directory, opened.names
        assert names is not None, "looked at before it is read"
        dots = ((b".", directory), (b"..", self._namespace.parent(directory)))
        children = directory.children if isinstance(directory, Node) else None
        for position in range(start, len(names) + DOT_COUNT):
            if position < DOT_COUNT:
                name, inode = dots[position]
            else:
                name, inode = names[position - DOT_COUNT]
                if children is not None and children.get(name) is not inode:
                    # Gone since: the kernel would take the entry for news and show the name again.
                    continue
            yield position, name, inode

    def close(self, handle: int) -> None:
        self._open.pop(handle).holding.close()

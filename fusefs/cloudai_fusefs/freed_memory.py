"""What a large piece of work leaves free in this process goes back to the machine.

glibc keeps freed memory below what is still in use: the messages of a listing of 100,000 names lie among what was made
of them, and 27 MiB stayed. File contents, which are mapped one by one, never come to lie there.
"""

from __future__ import annotations

import ctypes
from typing import Final

# Other libraries have none: theirs is their own way.
_malloc_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Blocks for some 10 ms. Other threads run meanwhile, until they want memory from what is being looked through."""
    if _malloc_trim is not None:
        _malloc_trim(0)

"""How the process asks the system for memory, and how often it searches its own for cycles."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

from cloudai_model.limits import MESSAGE_BYTES_MAX, MIB

# The options of glibc's mallopt(3), by their numbers.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

MMAP_THRESHOLD_BYTES: Final = 32 * MIB
"""Larger blocks alone are asked of the system one by one; glibc takes no larger number."""

TRIM_THRESHOLD_BYTES: Final = 64 * MIB
"""What stays with the process, at most, of what is free at the end of its memory."""

SELDOM_THRESHOLDS: Final = (50_000, 20, 20)
"""For gc.set_threshold(): a first look after so many objects more, one at what survived it after twenty of those."""

assert MESSAGE_BYTES_MAX < MMAP_THRESHOLD_BYTES


def keep_freed_memory() -> None:
    """Lets the C library keep blocks of some MiB for the next of their kind. Does nothing if it is not glibc.

    Called once, before threads are started. Otherwise each message with a chunk is up to a thousand page
    faults. Whole chunks, eight calls at a time: 4.3 ms of the master's CPU a chunk without it, 2.7 ms with it.
    One arena for all threads: with one for each, what they keep adds up (255 MiB instead of 145 MiB), and
    threads that hold the interpreter's lock do not meet at the allocator's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def freeze_loaded_objects() -> None:
    """What is there by now, the modules above all, is not searched for cycles any more.

    Called once, when what the process is made of has been imported: 50,000 objects, 40 ms each time that all of them
    are looked at. Cycles that are made later are found as ever.
    """
    gc.collect()
    gc.freeze()


def collect_cycles_seldom() -> None:
    """Searches for cycles hardly ever; the caller says by it that what it does leaves none that grow in number.

    Each name of a run is three objects that stay: a listing of 50,000 made the collector look at all there are again
    and again, and the whole process stand still for 125 ms at the last of it.
    """
    gc.set_threshold(*SELDOM_THRESHOLDS)

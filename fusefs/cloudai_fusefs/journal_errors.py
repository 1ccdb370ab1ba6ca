"""Why a journal cannot be used."""

from __future__ import annotations

import sqlite3
from typing import Final

from cloudai_model.errors import CloudAIError


class JournalUnusable(CloudAIError):
    """The journal cannot be used as it is."""

    reason = ""
    sentence = "the journal cannot be used"


class JournalDamaged(JournalUnusable):
    """Its bytes are not those that were written: what is readable can be saved."""

    reason = ""
    sentence = "the journal is damaged"


class JournalTooNew(JournalUnusable):
    """A newer version wrote it and understands it: it is to be left alone."""

    reason = ""
    sentence = "the journal was written by a newer version of this program"


UNREADABLE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What Python's sqlite3 raises of a damaged database: the second where SQLite's message quotes a damaged name."""

# What SQLite says of bytes that it, or a statement of ours, did not expect there. The rest is the disk's.
_DAMAGE_CODES: Final = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_TOOBIG,
)


def is_damage(error: Exception) -> bool:
    """Whether what is UNREADABLE is so for its bytes; else the disk, or the system, refuses."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # without the extended bits
    return code in _DAMAGE_CODES

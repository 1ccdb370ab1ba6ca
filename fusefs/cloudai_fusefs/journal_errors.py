"""Why a journal cannot be used."""

from __future__ import annotations

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

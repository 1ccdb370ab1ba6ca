"""Which version of this software runs."""

from __future__ import annotations


def software_version() -> str:
    """As installed; `unknown` when it runs from its sources."""
    # Imported here: 10 ms that most commands need not pay.
    import importlib.metadata

    try:
        return importlib.metadata.version("cloudai-fs")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

"""The one directory that everything of a run is in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cloudai_benchmarks import fuse_mounts
from cloudai_benchmarks.processes import end_marked, mark_children


@contextmanager
def working_directory(parent: Path) -> Iterator[Path]:
    """A new directory; taken away with all processes and mounts that are left in it."""
    directory = Path(tempfile.mkdtemp(prefix="cloudai-benchmark-", dir=parent.resolve()))
    mark_children(directory)
    try:
        yield directory
    finally:
        end_marked(directory)
        fuse_mounts.unmount_below(directory)
        if fuse_mounts.mounts_below(directory):
            click.echo(f"still mounted, and left as it is: {directory}", err=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)

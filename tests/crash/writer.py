"""The writer, a program of its own: carries a script out on the mount and logs each acknowledgement outside it.

    python -m crash.writer '{"root": ..., "log": ..., ...}'

It says a line on its standard output when it begins an operation that it was told to announce, and ends
after the last one, or with the first that is refused. Its exit status is 0 either way: the log has the rest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from crash.expected_tree import ExpectedTree
from crash.log import Acknowledgement, WriterLog
from crash.operations import Call, Descriptors, Operation
from crash.script import Pause, Script


@dataclass(frozen=True, kw_only=True)
class WriterTask:
    """What one writer is to do, in a directory that is there."""

    root: str
    log: str
    seed: int
    sync_share: float
    asks_master: bool
    """Whether it does what the mount cannot do without the master's answer."""
    announced: list[int]
    """The operations that are announced, counted from 0."""
    operation_count: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def write(task: WriterTask) -> None:
    """Carries the task out, to its end or to the first refusal."""
    log = WriterLog(Path(task.log))
    tree = ExpectedTree()
    descriptors = Descriptors(Path(task.root))
    numbers = itertools.count()
    script = Script(task.seed, tree, sync_share=task.sync_share, asks_master=task.asks_master)
    for step in script.operations():
        if isinstance(step, Pause):
            time.sleep(step)
            continue
        number = next(numbers)
        if number == task.operation_count:
            return
        if number in task.announced:
            os.write(sys.stdout.fileno(), b"now\n")
        log.note_intent(step)
        try:
            status = descriptors.carry_out(step)
        except OSError as error:
            log.note_failed(error.errno or 0)
            return
        path, acknowledgement = step.path, Acknowledgement()
        if status is not None:
            file = tree.slots[step.slot]
            path = next((path for path, node in tree.files() if node is file), "")
            digest = hashlib.blake2b(file.content, digest_size=16).hexdigest()
            acknowledgement = Acknowledgement(status.st_mtime_ns, len(file.content), digest)
        log.note_acknowledged(path, acknowledgement)
        take(tree, step, acknowledgement)


def take(tree: ExpectedTree, operation: Operation, acknowledgement: Acknowledgement) -> None:
    """Brings the tree up to date with an operation that was acknowledged.

    Fails when what close or fsync acknowledged is not what the tree has: then the log and the tree disagree.
    """
    if operation.call in (Call.FSYNC, Call.CLOSE):
        file = tree.slots[operation.slot]
        digest = hashlib.blake2b(file.content, digest_size=16).hexdigest()
        assert (len(file.content), digest) == (acknowledgement.size_bytes, acknowledgement.digest)
        file.mtime_ns = acknowledgement.mtime_ns
    tree.apply(operation)


if __name__ == "__main__":
    write(WriterTask(**json.loads(sys.argv[1])))

"""Removes one run's strays at the master: nodes that lost their last name here while the commit that names them was on
its way.

Every method that waits wants the run's mutation lock held.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import trio

from cloudai_fusefs.master_client import MasterClient, new_request_id
from cloudai_fusefs.removal_sender import PASSING
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staging import Staging
from cloudai_model.errors import (
    CloudAIError,
    DirectoryNotEmpty,
    MasterUnavailable,
    NotFound,
)
from cloudai_proto.storage.v1 import names_pb2 as names

log = logging.getLogger(__name__)

CALLS_AT_ONCE_MAX: Final = 16
"""Each takes a round trip, and there may be hundreds: files that were replaced while they were on their way."""


class StraySender:
    """The strays of one run, on their way."""

    def __init__(self, client: MasterClient, tree: RunTree, staging: Staging) -> None:
        self._client = client
        self._tree = tree
        self._staging = staging

    async def send(self) -> None:
        """Returns when the master has answered for all that wait.

        Raises MasterUnavailable, Unauthenticated, NoSpace and QuotaExceeded: what is left waits on. Cancelled: the
        same.
        """
        not_empty: set[int] = set()
        while waiting := [node_id for node_id in self._tree.stray_ids if node_id not in not_empty]:
            full = await self._remove_all(waiting)
            if len(full) == len(waiting):
                not_empty.update(full)
            else:
                not_empty.clear()  # a directory may have waited for what was in it
        for node_id in not_empty:  # somebody else has put something into the directory
            self._forget(node_id)
            self._tree.is_in_doubt = True  # as below

    async def _remove_all(self, node_ids: list[int]) -> list[int]:
        """Those that are directories with something in them. Raises the first failure of `send`, after the others."""
        full: list[int] = []
        failures: list[CloudAIError] = []
        left = iter(node_ids)
        async with trio.open_nursery() as nursery:
            for _ in range(min(len(node_ids), CALLS_AT_ONCE_MAX)):
                nursery.start_soon(self._remove_next, left, full, failures)
        if failures:
            if not isinstance(failures[0], MasterUnavailable):
                self._tree.stray_failure = failures[0]
            raise failures[0]
        self._tree.stray_failure = None
        return full

    async def _remove_next(self, left: Iterator[int], full: list[int], failures: list[CloudAIError]) -> None:
        """One after the other, as long as none has failed."""
        for node_id in left:
            try:
                if await self._remove(node_id):
                    self._forget(node_id)
                else:
                    full.append(node_id)
            except CloudAIError as error:
                failures.append(error)
            if failures:
                return

    async def _remove(self, node_id: int) -> bool:
        """False: it is a directory with something in it. A refusal that stays is logged."""
        try:
            await remove_stray(self._client, self._tree, node_id)
        except PASSING:
            raise
        except DirectoryNotEmpty:
            return False
        except CloudAIError as error:
            log.warning("%s: what was removed may still be there: %s", self._tree.path, error)
            self._tree.is_in_doubt = True  # news of it were left aside
            if self._tree.is_sealed:
                # No news come any more, with which it would be listed: the next look does.
                self._tree.is_kept = False
        return True

    def _forget(self, node_id: int) -> None:
        self._tree.stray_ids.remove(node_id)
        self._staging.forget_stray(self._tree, node_id)


async def remove_stray(client: MasterClient, tree: RunTree, node_id: int, moment_ns: int = 0) -> None:
    """Afterwards the master does not have the node where commits from here have put it, nor anywhere where nobody knows
    that any more. Raises as the client, but for NotFound.
    """
    edges = tree.stray_names.of(node_id)
    if edges is None:
        with suppress(NotFound):
            request = _request_of(tree, node_id, moment_ns)
            tree.answered.note_removed(node_id, (await client.remove(request)).revision)
        return
    for parent, name in edges:
        request = _request_of(tree, node_id, moment_ns)
        request.parent_node_id, request.name = place = parent.node_id, name
        with suppress(NotFound):  # it was not there, or somebody else has moved or replaced it
            tree.answered.note_absence(place, node_id, (await client.remove(request)).revision)


def _request_of(tree: RunTree, node_id: int, moment_ns: int) -> names.RemoveRequest:
    return names.RemoveRequest(
        request_id=new_request_id(), task_id=tree.task_id, node_id=node_id, mtime_ns=moment_ns
    )

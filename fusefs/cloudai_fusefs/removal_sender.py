"""Tells the master of one run's removals, in batches and in their order.

A batch whose answer was lost is repeated with its own request id before anything else is sent. Every method that
waits wants the run's mutation lock held: no commit may cross a removal of the name that it takes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

import trio

from cloudai_fusefs.master_client import MasterClient, new_request_id
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.staging import Staging
from cloudai_fusefs.waiting_removals import Removal
from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model.errors import (
    CloudAIError,
    MasterUnavailable,
    NoSpace,
    NotFound,
    NotSupported,
    QuotaExceeded,
    Unauthenticated,
)
from cloudai_model.limits import COMMIT_NODES_MAX
from cloudai_proto.storage.v1 import names_pb2 as names

log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.05
"""From the first of some removals to their call: `rm -r` makes some hundred in it."""

PASSING: Final = (MasterUnavailable, Unauthenticated, NoSpace, QuotaExceeded)
"""Failures that say nothing against removals: these wait on."""


class RemovalSender:
    """The removals of one run, on their way."""

    def __init__(
        self,
        client: MasterClient,
        tree: RunTree,
        staging: Staging,
        tell_kernel: Callable[[Iterable[Invalidation]], None],
    ) -> None:
        self._client = client
        self._tree = tree
        self._staging = staging
        self._tell_kernel = tell_kernel
        self._unanswered: tuple[names.RemoveNodesRequest, Sequence[Removal]] | None = None
        self.due_seconds = math.inf
        """When the next batch is to be sent, on trio's clock. Infinite: nothing waits."""

    def note_waiting(self) -> None:
        """There are removals, of which some may be new. Those that were put off have their time."""
        if self._tree.removals.failure is None:
            self.due_seconds = min(self.due_seconds, trio.current_time() + GATHER_SECONDS)

    def want_now(self) -> None:
        """Somebody waits for them."""
        self._tree.removals.failure = None
        self.due_seconds = -math.inf

    def put_off(self, seconds: float, failure: CloudAIError) -> None:
        """They cannot be sent for this reason, which those who wait are told, and are tried again after a while."""
        if self._tree.removals:
            self._tree.removals.failure = failure
            self.due_seconds = trio.current_time() + seconds

    async def send(self) -> None:
        """Returns when the master has answered all that wait; those that it refuses for good are taken back.

        Raises MasterUnavailable, Unauthenticated, NoSpace and QuotaExceeded: what is left waits on. Cancelled: the
        same.
        """
        while self._tree.removals:
            if self._unanswered is None:
                self._unanswered = self._compose()
            request, removals = self._unanswered
            try:
                response = await self._client.remove_nodes(request)
            except PASSING:
                # Sent again as it is: whether it was carried out, its request id will tell.
                raise
            except CloudAIError as error:
                self._unanswered = None
                self._take_back_all(error)
                continue
            self._unanswered = None
            self._take_answer(removals, response)
        self._tree.removals.failure = None
        self.due_seconds = math.inf

    def _compose(self) -> tuple[names.RemoveNodesRequest, Sequence[Removal]]:
        removals = list(islice(self._tree.removals, COMMIT_NODES_MAX))
        request = names.RemoveNodesRequest(request_id=new_request_id(), task_id=self._tree.task_id)
        for removal in removals:
            parent_id, name = removal.place
            request.removals.add(
                node_id=removal.node.node_id,
                parent_node_id=parent_id,
                name=name,
                generation=removal.edge.node.generation,
                mtime_ns=removal.removed_at_ns,
            )
        return request, removals

    def _take_answer(self, removals: Sequence[Removal], response: names.RemoveNodesResponse) -> None:
        told: list[Invalidation] = []
        for removal, result in zip(removals, response.results, strict=True):
            match result.WhichOneof("result"):
                case "error":
                    self._tree.removals.note_refused(removal, error_from_detail(result.error))
                    log.warning("%s: shown again: %s", removal.label, removal.failure)
                    told += self._tree.take_back_removal(removal)
                case "kept":
                    log.info("%s: shown again: it was changed elsewhere", removal.label)
                    told += self._tree.answer_removal(removal, response.revision, result.kept)
                case _:
                    told += self._tree.answer_removal(removal, response.revision, None)
        self._end(removals, told)

    def _take_back_all(self, error: CloudAIError) -> None:
        tree = self._tree
        removals = list(tree.removals)
        is_gone = tree.is_removed or isinstance(error, NotFound)
        if not is_gone:
            log.warning("%s: %d removed files are shown again: %s", tree.path, len(removals), error)
        if isinstance(error, NotSupported):
            self._staging.removals.note_not_offered()
        told: list[Invalidation] = []
        for removal in removals:
            if is_gone:
                removal.failure = error
                told += tree.answer_removal(removal, 0, None)  # with the run, its names are gone
            else:
                tree.removals.note_refused(removal, error)
                told += tree.take_back_removal(removal)
        self._end(removals, told)

    def _end(self, removals: Sequence[Removal], told: Iterable[Invalidation]) -> None:
        self._staging.removals.forget(removals)
        for removal in removals:
            if removal.node.is_attached and removal.node.staged is not None:
                # Somebody who had it open has written to it meanwhile.
                self._staging.note_content(removal.node)
        self._tell_kernel(told)
        self._staging.note_news(self._tree)

"""Loads the managed levels and the runs' trees when they are first looked at, and keeps them exact by the
master's watch streams: one for each user looked at, one for each open run looked into.

A stream that breaks is opened again where it stood. As long as it is broken, `watch_is_healthy` is False and
the kernel is given short timeouts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import trio

from cloudai_fusefs import freed_memory
from cloudai_fusefs.background import keep_running
from cloudai_fusefs.listing import Listing
from cloudai_fusefs.managed_tree import ManagedTree, UserDirectory
from cloudai_fusefs.master_client import MasterClient
from cloudai_fusefs.outage_log import OutageLog
from cloudai_fusefs.relisting import Relisting
from cloudai_fusefs.run_nodes import Invalidation
from cloudai_fusefs.run_tree import RunTree
from cloudai_fusefs.sealed_cache import SealedCache
from cloudai_fusefs.staging import Staging
from cloudai_model.errors import CloudAIError, GenerationChanged, MasterUnavailable, NotFound
from cloudai_proto.storage.v1 import names_pb2 as names

log = logging.getLogger(__name__)

RECONNECT_SECONDS_MAX: Final = 2.0
"""Full jitter below this between two attempts to open a stream again: many mounts share a master."""

RUN_WATCHES_MAX: Final = 64
"""Open runs followed at once: each costs a thread here and a stream at the master."""

UNWATCHED_SECONDS_MAX: Final = 1.0
"""Beyond that many, the run followed longest is listed again when it is looked into, at most this often."""

WATCH_PATIENCE_SECONDS: Final = 0.2
"""The first answer of a watch takes one round trip."""

RECOVERED_AT_ONCE: Final = 50
"""Changes of an earlier mount, at about 0.1 ms each, between two chances for others to run."""

LISTING_ATTEMPTS_MAX: Final = 5
"""Of a tree of more than one page: a run is sealed once, and a master seldom has another history than before."""

LARGE_LISTING_NAMES: Final = 10_000
"""2.5 MiB of messages and more."""

TellKernel = Callable[[Iterable[Invalidation]], None]


class TreeSync:
    """Brings what the master knows into the trees."""

    def __init__(
        self,
        client: MasterClient,
        managed: ManagedTree,
        staging: Staging,
        sealed_cache: SealedCache,
        tell_kernel: TellKernel,
        nursery: trio.Nursery,
    ) -> None:
        self._client = client
        self._managed = managed
        self._staging = staging
        self._sealed_cache = sealed_cache
        self._tell_kernel = tell_kernel
        self._nursery = nursery
        self.run_was_listed = trio.Event()
        """Set when the names of a run are taken into memory, again perhaps; another one is in its place then."""
        self.recovery_errors: dict[str, CloudAIError] = {}  # of runs that are gone, by task id
        self._run_watches: dict[RunTree, trio.CancelScope] = {}  # the longest followed first
        self._recovering: set[str] = set()
        self._recovered = trio.Event()
        self._recovered.set()

    @property
    def watch_count(self) -> int:
        """How many users and open runs are followed."""
        return len(self._run_watches) + sum(user.is_loaded for user in self._managed.root.users.values())

    async def keep_sealed(self, tree: RunTree) -> bool:
        """The tree of a sealed run is on disk afterwards, for a mount without a master; an open one is left.

        A run that was looked into while it was open has its tree in memory alone. False: it is not, as it is open or
        the disk has not taken it. Raises as the client.
        """
        if tree.is_sealed and not await self._sealed_cache.has_tree(tree.task_id):
            await self._list_run(tree)
            return await self._sealed_cache.has_tree(tree.task_id)
        return tree.is_sealed

    def let_go(self, tree: RunTree) -> bool:
        """Lets go of what is in a sealed run until somebody looks into it again. False: it is in use, or followed."""
        if not tree.may_be_let_go or tree in self._run_watches:
            return False
        tree.let_go()
        return True

    async def load_user(self, user: UserDirectory) -> None:
        """The user's tasks and runs are known afterwards. Raises as the client; cancelled: not loaded."""
        if user.is_loaded:
            return
        async with user.loading_lock:
            if not user.is_loaded:
                await self._list_user(user)
                self._nursery.start_soon(keep_running, f"the watch of {user.name}", self._watch_user, user)

    async def load_run(self, tree: RunTree) -> None:
        """The run's tree is complete afterwards. Raises as the client; cancelled: it may be, or is not loaded."""
        if self._is_exact(tree):
            return
        async with tree.loading_lock:
            if not self._is_exact(tree):
                await self._load_run(tree)

    def _is_exact(self, tree: RunTree) -> bool:
        """Whether the tree is known and kept so; one without a watch is for a second."""
        if not tree.is_loaded or tree.is_kept:
            return tree.is_loaded
        return trio.current_time() < tree.listed_at_seconds + UNWATCHED_SECONDS_MAX

    async def _load_run(self, tree: RunTree) -> None:
        if tree.is_sealed and await self._load_sealed(tree):
            self._give_memory_back(tree)
            tree.is_kept = True
            return
        is_final = await self._list_run(tree)
        self._give_memory_back(tree)
        await self._recover(tree)
        tree.listed_at_seconds = trio.current_time()
        tree.is_kept = True
        if not is_final:
            if len(self._run_watches) >= RUN_WATCHES_MAX:
                self._end_watch(next(iter(self._run_watches)))
            self._run_watches[tree] = trio.CancelScope()
            tree.watch_was_tried = trio.Event()
            self._nursery.start_soon(keep_running, f"the watch of {tree.path}", self._watch_run, tree)
            # What is shown before the watch answers carries short timeouts, and is built and asked for again.
            with trio.move_on_after(WATCH_PATIENCE_SECONDS):
                await tree.watch_was_tried.wait()

    def _give_memory_back(self, tree: RunTree) -> None:
        """What the listing took beside the names; nobody waits for it."""
        if len(tree.nodes) >= LARGE_LISTING_NAMES:
            self._nursery.start_soon(trio.to_thread.run_sync, freed_memory.give_back)

    def _end_watch(self, tree: RunTree) -> None:
        """What the tree shows was exact until now; it is listed again when it is next looked into."""
        self._run_watches.pop(tree).cancel()
        self._note_health(tree, is_healthy=False)
        tree.listed_at_seconds = trio.current_time()
        tree.is_kept = False

    async def recover_runs(self) -> None:
        """Loads every run in which an earlier mount left something, until all of it uploads again."""
        unread = self._staging.recovery.unread_task_ids
        self._recovering |= unread.keys()
        if unread:
            self._recovered = trio.Event()
        for task_id, user_name in unread.items():
            self._nursery.start_soon(self._recover_run, task_id, user_name)

    async def wait_recovered(self) -> None:
        """Returns when everything that an earlier mount left is among what is pending."""
        await self._recovered.wait()

    async def _recover_run(self, task_id: str, user_name: str) -> None:
        await self._try_recover_run(task_id, user_name)
        self._recovering.discard(task_id)
        if not self._recovering:
            self._recovered.set()

    async def _try_recover_run(self, task_id: str, user_name: str) -> None:
        outages = OutageLog(log)
        while True:
            try:
                await self._load_recovered(task_id, user_name)
            except NotFound as error:
                if not self._staging.recovery.has_changes(task_id):
                    return  # only names were to be removed, which are gone with the run
                log.error("what is staged for the run %s stays staged: %s", task_id, error)  # noqa: TRY400
                self.recovery_errors[task_id] = error
                return
            except CloudAIError as error:
                outages.note_failure(f"the run {task_id} cannot be loaded yet", error)
                await self._pause()
            else:
                return

    async def _load_recovered(self, task_id: str, user_name: str) -> None:
        user = self._managed.root.users.get(user_name)
        if user is None:
            raise NotFound("the master does not show the user", user=user_name)
        await self.load_user(user)
        tree = self._managed.runs.get(task_id)
        if tree is None:
            raise NotFound("the master does not show the run", user=user_name)
        await self.load_run(tree)

    async def _list_user(self, user: UserDirectory) -> None:
        tasks = await self._client.list_tasks(user.name)
        runs, _ = await self._client.list_runs(user.name)
        user.revision = tasks.revision
        self._tell_kernel(self._managed.apply_lists(user, tasks.tasks, runs))

    async def _load_sealed(self, tree: RunTree) -> bool:
        pages = await self._sealed_cache.load_tree(tree.task_id)
        if pages is None:
            return False
        await self._take_listing(tree, Listing(pages))
        await self._recover(tree)
        return True

    async def _recover(self, tree: RunTree) -> None:
        """What an earlier mount left in the run is laid over it. Whoever looks into it waits in `load_run`."""
        while self._staging.recovery.recover(tree, RECOVERED_AT_ONCE):
            await trio.lowlevel.checkpoint()

    async def _list_run(self, tree: RunTree) -> bool:
        """True: the run was sealed before it was listed, so that nothing can follow."""
        listing = await self._list(tree.task_id)
        await self._take_listing(tree, listing)
        if listing.is_sealed:
            await self._sealed_cache.store_tree(tree.task_id, listing.pages)
        return listing.is_sealed

    async def _take_listing(self, tree: RunTree, listing: Listing) -> None:
        """Cancelled: it is taken all the same. A tree half of which is there would be compared name by name."""
        told: list[Invalidation] = []
        with trio.CancelScope(shield=True):
            for _ in tree.apply_tree(listing, told):
                await trio.lowlevel.checkpoint()
        self._tell_kernel(told)
        self._staging.note_listing(tree)
        self.run_was_listed.set()
        self.run_was_listed = trio.Event()

    async def _list(self, task_id: str) -> Listing:
        for _ in range(LISTING_ATTEMPTS_MAX):
            pages = [await self._client.list_tree(task_id)]
            try:
                while pages[-1].next_page_token:
                    pages.append(await self._client.list_tree(task_id, pages[-1].next_page_token))
            except GenerationChanged:
                # What has changed meanwhile is forgotten, or the master has another history by now.
                await self._pause()
                continue
            listing = Listing(pages)
            # The watch would not tell again of what the listing has told; and a sealed run's is worth keeping.
            if not listing.is_outdated:
                return listing
        raise MasterUnavailable("the run became another one each time it was listed", task_id=task_id)

    async def _watch_user(self, user: UserDirectory) -> None:
        outages = OutageLog(log)
        while True:
            request = names.WatchRequest(user=user.name, after_revision=user.revision)
            try:
                async with self._client.watch(request) as responses:
                    async for response in responses:
                        outages.note_success()
                        if response.reload:
                            await self._list_user(user)
                            await self._pause()
                            break
                        self._tell_kernel(self._managed.apply_changes(user, response))
                        for change in response.changes:
                            if change.run_changed.removed:
                                await self._sealed_cache.forget_run(change.run_changed.task_id)
            except CloudAIError as error:
                outages.note_failure(f"the watch of {user.name} broke", error)
                await self._pause()

    async def _watch_run(self, tree: RunTree) -> None:
        if tree not in self._run_watches:
            return  # ended before it began
        with trio.CancelScope() as scope:
            self._run_watches[tree] = scope
            await self._follow_run(tree)
            del self._run_watches[tree]

    async def _follow_run(self, tree: RunTree) -> None:
        """Returns when nothing can follow: it is sealed and listed, or gone."""
        relisting = Relisting(tree, trio.current_time())
        outages = OutageLog(log)
        while not tree.is_removed:
            try:
                if await self._follow_watch(tree, relisting):
                    return
            except NotFound:
                tree.is_removed = True
            except CloudAIError as error:
                if tree.watch_is_healthy:
                    outages.note_success()
                self._note_health(tree, is_healthy=False)
                outages.note_failure(f"the watch of {tree.path} broke", error)
                await self._pause()
                if relisting.is_due_without_news(trio.current_time()):
                    with suppress(CloudAIError):  # it is away altogether
                        if await self._list_again(tree, relisting):
                            return
                    relisting.note_away(trio.current_time())

    async def _follow_watch(self, tree: RunTree, relisting: Relisting) -> bool:
        """Follows one stream. True: nothing can follow; False: the next goes on where this one, or a listing, ended.

        Raises what a broken stream does.
        """
        request = names.WatchRequest(task_id=tree.task_id, after_revision=tree.revision)
        async with self._client.watch(request) as responses:
            async for response in responses:
                if response.reload:
                    tree.forget_revisions()
                    is_final = await self._list_run(tree)
                    if not is_final:
                        await self._pause()
                    return is_final
                self._tell_kernel(tree.apply_changes(response))
                self._staging.note_news(tree)
                self._note_health(tree, is_healthy=True)
                # (That it is sealed may be known before, from its user's watch; the changes before it come here alone.)
                is_last = any(change.run_changed.sealed for change in response.changes)
                now_seconds = trio.current_time()
                if relisting.is_due_after_news(now_seconds, is_news=bool(response.changes), is_last=is_last):
                    return await self._list_again(tree, relisting)
                if is_last:
                    return True
        return False

    async def _list_again(self, tree: RunTree, relisting: Relisting) -> bool:
        """As _list_run."""
        is_final = await self._list_run(tree)
        relisting.note_listed(trio.current_time())
        return is_final

    def _note_health(self, tree: RunTree, *, is_healthy: bool) -> None:
        tree.watch_was_tried.set()
        if tree.watch_is_healthy != is_healthy:
            tree.watch_is_healthy = is_healthy
            for node in tree.nodes.values():
                node.kernel_attributes = None  # they carry the timeouts

    @staticmethod
    async def _pause() -> None:
        # noise of a jitter, not of a secret
        await trio.sleep(random.uniform(0.05, RECONNECT_SECONDS_MAX))  # noqa: S311

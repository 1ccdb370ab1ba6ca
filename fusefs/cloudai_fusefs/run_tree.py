"""The tree of one run: its nodes and their names, and what the master has said of them.

Pure state: nothing here waits. Functions that take in news return what the kernel must be told
(`Invalidation`); the caller sends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from cloudai_fusefs.answered_names import AnsweredNames, NewsOfName, Place
from cloudai_fusefs.listing import Listing
from cloudai_fusefs.node import DIRECTORY, Node, Pending
from cloudai_fusefs.run_nodes import Invalidation, RunNodes, is_inside, stays
from cloudai_fusefs.waiting_removals import Removal, WaitingRemovals
from cloudai_model.errors import CloudAIError, NotFound, RunSealed
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types

NAMES_IN_A_STEP: Final = 256
"""Of a listing: a millisecond or two of the loop, but for what the collector of garbage takes."""


class RunTree(RunNodes):
    """One run. `watch_is_healthy` says whether news of other writers arrives by itself."""

    def __init__(
        self, run: types.Run, register: Callable[[Node], None], unregister: Callable[[Node], None]
    ) -> None:
        super().__init__(register, unregister)
        self.user = run.user
        self.task = run.task
        self.name = run.name
        self.task_id = run.task_id
        self.created_at_ns = run.created_at_ns
        self.is_sealed = run.sealed
        self.exit_status = run.exit_status
        self.revision = 0
        self.is_loaded = False
        self.listed_at_seconds = -math.inf  # of one without a watch, on trio's clock
        self.looked_at_seconds = -math.inf  # when somebody asked for something in it last, on trio's clock
        self.holder_count = 0  # who needs all of its names to stay known: open listings, warm-ups
        self.is_removed = False
        self.is_sealing = False  # here, and soon at the master: nothing may be added to what it waits for
        self.is_kept = False  # exact by itself: sealed, or followed by a watch
        self.watch_is_healthy = False
        self.watch_was_tried = trio.Event()
        self.loading_lock = trio.Lock()
        # Held around every call that changes names at the master: a commit whose answer is not here yet
        # must not cross a rename of what it names.
        self.mutation_lock = trio.Lock()
        # Without a name here, and left with one at the master by a commit: to be removed there.
        self.stray_ids: list[int] = []
        self.stray_failure: CloudAIError | None = None  # why they wait, where patience alone may not do
        self.removals = WaitingRemovals()
        # Others have changed names while this mount had changes of its own under way: once both are at rest, a listing
        # shows whether every order of the two was foreseen.
        self.is_disputed = False
        self._asked: set[Place] = set()
        self.answered = AnsweredNames()
        # Files that news gave a further name, and how many the master says they have: until the end of the news, as the
        # removal of the earlier one comes behind it.
        self._given_names: dict[Node, int] = {}
        self.root = Node(self, run.root_node_id, DIRECTORY)
        moment_ns = run.sealed_at_ns or run.created_at_ns
        self.root.mtime_ns = self.root.ctime_ns = self.root.atime_ns = moment_ns
        if run.HasField("attributes"):
            self._take_attributes(self.root, run.attributes)
        self._add_node(self.root)

    @property
    def is_writable(self) -> bool:
        return not (self.is_sealed or self.is_sealing or self.is_removed)

    def check_writable(self) -> None:
        """Raises RunSealed or NotFound for a run that takes no changes any more."""
        if self.is_removed:
            raise NotFound(run=self.path)
        if self.is_sealed or self.is_sealing:
            raise RunSealed(run=self.path)

    @property
    def path(self) -> str:
        """In the master's tree."""
        return f"{self.user}/{self.task}/{self.name}"

    def label_of(self, node: Node) -> str:
        """The path in the master's tree, for people: bytes that are no UTF-8 as surrogate escapes."""
        inside = self.path_of(node).decode(errors="surrogateescape")
        return f"{self.path}/{inside}" if inside else self.path

    # --- changes made here -------------------------------------------------------------------------------

    def begin_removal(self, removal: Removal) -> None:
        """Takes the name away here, before the master does."""
        parent_id, name = removal.place
        self.detach(self.nodes[parent_id], name)
        self.removals.add(removal)

    def forget(self) -> None:
        """The run is gone: lets go of every node that nothing refers to, and of the others when that ends.

        What is staged in it keeps its name: it is refused by the master, and shown until a person has seen it.
        """
        self.is_removed = True
        self.root.kernel_attributes = None  # it has no links any more
        for node in list(self.nodes.values()):
            for parent, name in list(node.edges):
                if not stays(node):
                    self._detach(parent, name)
        self.forget_all_unused()

    @property
    def is_at_rest(self) -> bool:
        """Whether no change of a name is under way from here."""
        return not (
            self.mutation_lock.locked()
            or self.removals
            or self.answered
            or any(pending.place for pending in self.pending.values())
        )

    @property
    def may_be_let_go(self) -> bool:
        """Whether its nodes can be brought back by a listing as they are now, and nobody needs them meanwhile.

        Of one that a watch still follows the caller knows.
        """
        return self.is_kept and self.is_same_when_listed

    @property
    def is_same_when_listed(self) -> bool:
        """Whether a listing shows all that there is to it: of a sealed run without changes of its own, in which nobody
        is at work.
        """
        return (
            self.is_sealed
            and not (self.is_removed or self.is_in_doubt or self.is_disputed)
            and not (self.holder_count or self.loading_lock.locked())
            and not (self.pending or self.stray_ids)
            and self.is_at_rest
        )

    def let_go(self) -> None:
        """Lets go of what is in it, but for what is in use, until somebody looks into the run again."""
        assert self.may_be_let_go
        self.is_loaded = self.is_kept = False
        self.let_go_of_nodes()

    @contextmanager
    def held(self) -> Iterator[None]:
        """All of its names stay known in here."""
        self.holder_count += 1
        try:
            yield
        finally:
            self.holder_count -= 1

    @contextmanager
    def asking(self, *places: Place) -> Iterator[None]:
        """Around a call that changes what these names stand for at the master: news of them are its own."""
        self._asked.update(places)
        try:
            yield
        finally:
            self._asked.difference_update(places)

    # --- news from the master ----------------------------------------------------------------------------

    def forget_revisions(self) -> None:
        """The next listing is the truth, whatever was known: the master has another history by now."""
        self.revision = 0
        for node in self.nodes.values():
            node.revision = 0
        for pending in self.pending.values():
            pending.held_news.clear()
            pending.held_state = None
        self.answered.clear()
        self.removals.forget_news()

    def apply_tree(self, listing: Listing, told: list[Invalidation]) -> Iterator[None]:
        """The whole tree as listed. What is pending here stays; what the listing lacks otherwise goes. In steps, after
        each of which others may have a turn; the tree is loaded after the last. Who has more than one step holds the
        loading lock. `told` takes what the kernel is to be told then.

        Only what nobody knows of takes more than one: of a tree that was let go of, the kernel would be shown
        directories with some of their subdirectories.
        """
        was_let_go = self.is_let_go
        is_first = not self.is_loaded and (len(self.nodes) == 1 or was_let_go)
        self.begin_return()
        if is_first and not self.pending and not self.answered and not self.removals:
            yield from self._take_first_tree(listing, told, in_steps=not was_let_go)
        else:
            self._compare_tree(listing, told)

    def _compare_tree(self, listing: Listing, told: list[Invalidation]) -> None:
        self.is_in_doubt = self.is_disputed = False
        for _ in listing.arrange():
            pass
        seen: set[Place] = set()
        revision = listing.revision
        self.is_sealed = self.is_sealed or listing.is_sealed
        if self.root.take_server_state(listing.root):
            told.append(Invalidation(self.root.ino))
        for edge in listing.edges():
            seen.add((edge.parent_node_id, edge.name))
            # What was answered at the listing's own revision is in it.
            if not self._is_history(edge, edge.node.node_id, revision + 1):
                self._set_edge(edge, told)
        for removal in self.removals:
            if removal.place not in seen:
                removal.hold_back(NewsOfName(revision, None))
        for node in list(self.nodes.values()):
            for name, child in list((node.children or {}).items()):
                # What the master acknowledged while the listing was on its way is not in it.
                place = (node.node_id, name)
                known_revision = max(child.revision, self.answered.revision_of(place, child.node_id))
                if place not in seen and known_revision <= revision:
                    if stays(child):
                        self.is_in_doubt |= _is_under_way(child)
                    else:
                        self._drop_edge(node, name, told)
        self.forget_all_unused()
        self._given_names.clear()
        self.revision = max(self.revision, revision)
        self.answered.forget_until(self.revision)  # the news go on behind it
        self.is_loaded = True

    def _take_first_tree(
        self, listing: Listing, told: list[Invalidation], *, in_steps: bool
    ) -> Iterator[None]:
        """As apply_tree, where nothing is known yet: the kernel cannot have cached what it was never told.

        Of a sealed run that was let go of, it may have: that is as it was, and what it refers to is still here.
        """
        for _ in listing.arrange():
            if in_steps:
                yield
                if self.is_removed:
                    return
        nodes = self.nodes
        self.revision = max(self.revision, listing.revision)
        self.is_sealed = self.is_sealed or listing.is_sealed
        self.root.take_server_state(listing.root)
        for number, edge in enumerate(listing.edges(), start=1):
            if in_steps and number % NAMES_IN_A_STEP == 0:
                # Of all this, the root alone can be asked for.
                subdirectory_count, self.root.subdirectory_count = self.root.subdirectory_count, 0
                yield
                if self.is_removed:
                    return
                self.root.subdirectory_count = subdirectory_count
            parent = nodes.get(edge.parent_node_id)
            if parent is None or parent.children is None:
                continue  # a directory's id, and a file's: no tree
            message = edge.node
            node = nodes.get(message.node_id)
            if node is None:
                node = Node(self, message.node_id, message.kind)
                node.take_first_state(message)
                self._add_node(node)
            else:
                node.take_server_state(message)
            if parent.children.get(edge.name) is not node:
                self._attach(parent, edge.name, node)
        self.root.kernel_attributes = None  # asked for meanwhile, with no subdirectories
        self.is_loaded = True
        told.append(Invalidation(self.root.ino))

    def apply_changes(self, response: names.WatchResponse) -> list[Invalidation]:
        """What a watch brought. Applying it twice, or late, does no harm."""
        told: list[Invalidation] = []
        for change in response.changes:
            match change.WhichOneof("change"):
                case "edge_set":
                    edge = change.edge_set
                    if not self._is_history(edge, edge.node.node_id, change.revision):
                        self._set_edge(edge, told)
                case "edge_removed":
                    removed = change.edge_removed
                    if not self._is_history(removed, removed.node_id, change.revision):
                        removal = self.removals.at(removed.parent_node_id, removed.name)
                        if removal is not None and removal.node.node_id == removed.node_id:
                            removal.hold_back(NewsOfName(change.revision, None))
                        self._remove_edge(removed, change.revision, told)
                case "node_changed":
                    node = self.nodes.get(change.node_changed.node_id)
                    if node is not None:
                        changed_ns = node.ctime_ns
                        _take_news(node, change.node_changed, told)
                        if change.revision <= self.answered.touched_revision_of(node.node_id):
                            # From before it was renamed or lost a name here, which is not to be undone.
                            node.ctime_ns = max(node.ctime_ns, changed_ns)
                case "run_changed":
                    self.note_sealed(change.run_changed)
                    self.is_removed = self.is_removed or change.run_changed.removed
                    told += [Invalidation(node.ino) for node in self.nodes.values() if node.lookup_count]
                case _:
                    pass  # a kind of change that this version does not know
        # A file that was committed where its directory had been has gone with that here.
        self.is_in_doubt |= any(node.link_count > count for node, count in self._given_names.items())
        self._given_names.clear()
        self.revision = max(self.revision, response.revision)
        self.answered.forget_until(self.revision)
        return told

    def answer_removal(self, removal: Removal, revision: int, kept: types.Node | None) -> list[Invalidation]:
        """The master answered at this revision: the name is gone, or it kept the node, which somebody has changed.

        News that were held back outdo the answer if they are newer.
        """
        told: list[Invalidation] = []
        parent_id, name = removal.place
        self.removals.end(removal)
        if kept is None and revision > self.revision:
            self.answered.note_absence(removal.place, removal.node.node_id, revision)
        edge = None
        if removal.news is not None and removal.news.revision > revision:
            edge = removal.news.edge
        elif kept is not None:
            edge = types.Edge(parent_node_id=parent_id, name=name, node=kept)
        if edge is not None:
            self._set_edge(edge, told)
        self.forget_if_unused(removal.node)
        return told

    def take_back_removal(self, removal: Removal) -> list[Invalidation]:
        """The master refuses: what it has under the name is shown again."""
        told: list[Invalidation] = []
        self.removals.end(removal)
        edge = removal.edge if removal.news is None else removal.news.edge
        if edge is not None and not self.is_removed:
            self._set_edge(edge, told)
        self.forget_if_unused(removal.node)
        return told

    def take_held_news(self, node: Node, pending: Pending, revision: int) -> list[Invalidation]:
        """The master has answered the node's commit at this revision. What news have told of it since, of its names
        once it is placed and of the rest once nothing of it is pending, is true.
        """
        told: list[Invalidation] = []
        if not pending.place:
            held, pending.held_news = pending.held_news, {}
            for (parent_id, name), news in sorted(held.items(), key=lambda item: item[1].revision):
                if news.revision <= revision:
                    continue
                if news.edge is not None:
                    self._set_edge(news.edge, told)
                else:
                    removed = names.EdgeRemoved(parent_node_id=parent_id, name=name, node_id=node.node_id)
                    self._remove_edge(removed, news.revision, told)
        if node.pending is None and pending.held_state is not None and pending.held_state.revision > revision:
            _take_news(node, pending.held_state, told)
        return told

    def give_up_place(self, node: Node, pending: Pending) -> None:
        """A directory was moved here into what others have moved into it: once news have told where the master has it,
        it stays there, and the next listing shows it so.
        """
        if any(news.edge is not None for news in pending.held_news.values()):
            pending.place = False
            pending.covered_ids = ()
            self.left_names.forget(node)
            pending.held_news.clear()

    def note_left(self, pending: Pending, place: Place) -> None:
        """What has yet to be placed loses this name here. What others have put there meanwhile was hidden by it, and
        nobody here has replaced or removed that: the next listing shows it.
        """
        if pending.place and place in pending.held_news:
            self.is_in_doubt = True

    def note_sealed(self, run: types.Run) -> None:
        """What the master says of the run as a whole."""
        if run.sealed and not self.is_sealed:
            self.is_sealed = True
            self.exit_status = run.exit_status
            for node in self.nodes.values():
                node.kernel_attributes = None  # they carry the timeouts

    def _is_history(self, place: types.Edge | names.EdgeRemoved, node_id: int, revision: int) -> bool:
        """Whether an answer has said since whether the name stands for the node."""
        return revision <= self.answered.revision_of((place.parent_node_id, place.name), node_id)

    def _set_edge(self, edge: types.Edge, told: list[Invalidation]) -> None:
        parent = self.nodes.get(edge.parent_node_id)
        if parent is None or parent.children is None or not parent.is_attached:
            # Removed here in the meantime, and what is below it with it: unless what the master has there came to be
            # after that.
            removed_at_revision = self.answered.touched_revision_of(edge.parent_node_id)
            self.is_in_doubt |= edge.node.revision > removed_at_revision
        if parent is None or parent.children is None:
            return
        is_stray = edge.node.kind != DIRECTORY and edge.node.node_id in self.stray_ids
        if is_stray and self.stray_names.may_be(edge.node.node_id, (parent, edge.name)):
            return  # about to be removed there; of a directory somebody else may have made use
        if self.left_names.is_of_replaced((parent, edge.name), edge.node.node_id):
            return  # the same, once what replaced it is there
        node = self.nodes.get(edge.node.node_id)
        place = (edge.parent_node_id, edge.name)
        news = NewsOfName(edge.node.revision, edge)
        removal = self.removals.at(*place)
        if removal is not None:
            is_of_node = removal.node is node
            removal.hold_back(news if is_of_node else NewsOfName(news.revision, None))
            if is_of_node:
                return
        holder = parent.children.get(edge.name)
        if holder is not None and holder is node:
            if node.pending is not None:
                node.pending.held_news[place] = news
            _take_news(node, edge.node, told)
            return
        if (
            holder is not None
            and holder.pending is not None
            and edge.node.node_id in holder.pending.replaced_ids
        ):
            holder.pending.held_news[place] = news  # not a directory that others have made
            return
        self._note_dispute(place)
        if node is not None and (node.pending is not None and node.pending.place):
            node.take_server_state(edge.node)
            node.pending.held_news[place] = news
            return  # made or moved here: its place is what this mount will commit
        if node is not None and node.is_directory and is_inside(parent, node):
            # The parent was moved into it here: in a circle, neither would have a path.
            self.is_in_doubt = True
            return
        if holder is not None:
            is_new_directory = edge.node.kind == DIRECTORY and (node is None or not node.is_attached)
            if holder.is_directory and is_new_directory and stays(holder):
                # Both made the directory, or it was made anew for what is to be committed below it: ours takes the
                # master's id, as its commit would find. What is below must not lose its path.
                self.take_node_id(holder, edge.node.node_id)
                return
            if holder.is_directory and edge.node.kind != DIRECTORY and stays(holder):
                # What is to be committed below keeps its path: it will be refused until somebody has moved it, or what
                # is in its way there.
                self.is_in_doubt |= _is_under_way(holder)
                return
            if holder.pending is not None and holder.pending.place:
                if not (holder.is_directory and edge.node.kind == DIRECTORY):
                    # The commit will replace it, unless ours loses the name before that. (No file replaces a directory:
                    # its commit is refused for as long as that is there.)
                    if edge.node.node_id not in holder.pending.covered_ids:
                        holder.pending.covered_ids = ()
                    holder.pending.held_news[place] = news
                elif node is not None and not is_inside(holder, node):
                    self._merge_directory(holder, node, told)
                else:
                    self.is_in_doubt = True
                return
        if node is not None and node.is_directory and node.first_edge is not None:
            # Moved: its new name comes before the removal of the old one, and it has only one. What had the new name
            # may be above the old.
            old_parent, old_name = node.first_edge
            self._detach(old_parent, old_name)
            self.directories_with_stale_rows.add(node)
            told += [Invalidation(old_parent.ino, old_name), Invalidation(old_parent.ino)]
        if holder is not None:
            if holder.is_directory and node is not None and node.is_directory:
                # Moved over ours elsewhere, where that was empty.
                self._move_staying(holder, node, told)
            self._drop_edge(parent, edge.name, told)
        if node is None:
            node = Node(self, edge.node.node_id, edge.node.kind)
            self._add_node(node)
        if node.is_file and node.first_edge is not None:
            self._given_names[node] = edge.node.link_count
        self._attach(parent, edge.name, node)
        node.take_server_state(edge.node)  # all of it, now that it has a name
        told.append(Invalidation(parent.ino, edge.name))
        told.append(Invalidation(parent.ino))

    def _remove_edge(self, removed: names.EdgeRemoved, revision: int, told: list[Invalidation]) -> None:
        parent = self.nodes.get(removed.parent_node_id)
        if parent is None or parent.children is None:
            return
        node = parent.children.get(removed.name)
        if node is None:
            return
        if node.pending is not None and node.pending.place:
            node.pending.uncover(removed.node_id)
            node.pending.held_news[removed.parent_node_id, removed.name] = NewsOfName(revision, None)
        if node.node_id != removed.node_id:
            # Of a directory whose commit is under way the answer may say that it is the removed one.
            self.is_in_doubt |= node.is_directory and node.pending is not None and node.pending.sent
        elif stays(node):
            # The commit brings it back, unless that was carried out before the removal, or is not needed any more.
            self.is_in_doubt |= node.pending is None or not node.pending.place
        else:
            self._drop_edge(parent, removed.name, told, was_removed=True)
        self._note_dispute((removed.parent_node_id, removed.name))

    def _note_dispute(self, place: Place) -> None:
        if not self.is_disputed and place not in self._asked:
            self.is_disputed = not self.is_at_rest

    @staticmethod
    def _take_attributes(node: Node, attributes: types.Attributes) -> None:
        node.mode = attributes.mode
        node.uid = attributes.uid
        node.gid = attributes.gid
        node.mtime_ns = attributes.mtime_ns or time.time_ns()
        node.ctime_ns = attributes.ctime_ns or node.mtime_ns
        node.atime_ns = attributes.atime_ns or node.mtime_ns


def _is_under_way(node: Node) -> bool:
    """Whether something that the master may have heard of is yet to be committed, and does not wait for a person."""
    pending = node.pending
    if pending is not None and (pending.place or pending.content):
        return pending.failure is None and not node.is_unknown_to_master
    return any(map(_is_under_way, (node.children or {}).values()))


def _take_news(node: Node, message: types.Node, told: list[Invalidation]) -> None:
    size_bytes = node.size_bytes
    if not node.take_server_state(message):
        return
    if node.is_file and node.lookup_count and node.size_bytes > size_bytes:
        node.hide_growth(size_bytes)
        told.append(Invalidation(node.ino, grown=node))
    else:
        told.append(Invalidation(node.ino))

"""One round: writers at work, kill -9 at a moment that the seed says, and everything acknowledged is looked for."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crash.comparison import Observed, find_differences, find_losses, observe
from crash.expected_tree import ExpectedTree
from crash.log import WriterRecord
from crash.operations import Operation
from crash.round_plan import WITHOUT_MASTER, RoundPlan, Victim
from crash.writer import WriterTask, take
from crash.writer_process import Writer
from support.master_process import MasterProcess
from support.mount_process import MountProcess
from support.staged_state import NOTHING_STAGED, StagedState, read_dead_state, read_live_state

USER: Final = "user-123"
TASK: Final = "crash"
OPTIONS: Final = "insecure,timeo=20,xattr"

AFTERWARDS: Final = 60
"""How many operations writers go on for after a kill that is not the mount's..."""
ENDLESS: Final = 100_000
"""...and would, without it."""

DEATH_AT_LINE: Final = Path(__file__).with_name("death_at_line")
ARM: Final = signal.SIGRTMIN
LINE_SECONDS_MAX: Final = 3.0
"""How long a daemon is waited for that has been told to die at a line."""

ROUNDS_PER_PAIR: Final = 20
"""A new pair on empty disks then: the master keeps what nothing refers to, and disks are finite."""

ROUND_SECONDS_MAX: Final = 90.0
"""After that the mount daemon and the writers are killed, and the round has failed."""

MOMENT_SECONDS_MAX: Final = 15.0
"""The moment of the kill has come when the first writer begins an operation, or after this."""

BACKLOG_SECONDS_MAX: Final = 1.5
"""The same while the master is away: an operation that needs it waits for it."""


@dataclass
class RoundReport:
    """What came of a round. It counts when something was staged at the kill."""

    plan: RoundPlan
    staged: StagedState = NOTHING_STAGED
    acknowledged_count: int = 0
    closed_count: int = 0
    synced_count: int = 0
    compared_files: int = 0
    required_files: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        return self.staged.pending_count > 0


class Pair:
    """A master and a mount that serve many rounds, in directories of their own. Used as a context."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.master = MasterProcess(directory / "master")
        self._round_count = 0
        self._mounts: list[MountProcess] = []

    def __enter__(self) -> Pair:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.master.start()
        self.token = self.master.make_token(USER)
        try:
            self.mount = self.start_mount("mount")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """kill -9 of everything; nothing stays mounted."""
        for mount in self._mounts:
            mount.kill()
        self.master.kill()

    def start_mount(self, name: str) -> MountProcess:
        mount = MountProcess(self.directory / name, self.master.address, self.token, options=OPTIONS)
        self._mounts.append(mount)
        mount.start()
        return mount

    @contextmanager
    def fresh_mount(self) -> Iterator[MountProcess]:
        """As on another machine: with an empty cache and an empty state directory."""
        mount = self.start_mount(f"fresh-{self._round_count}")
        try:
            yield mount
        finally:
            mount.kill()
            self._mounts.remove(mount)
            shutil.rmtree(self.directory / f"fresh-{self._round_count}")

    def run(self, plan: RoundPlan) -> RoundReport:
        """One round in a run of its own. What is not as it must be is in the report; both are up afterwards."""
        self._round_count += 1
        return _Round(self, plan, self._round_count).report

    def restart_mount_to_die_at_line(self, line_count: int) -> None:
        """When it is told to: then so many lines later."""
        self.mount.kill()
        self.mount.environment = {"PYTHONPATH": str(DEATH_AT_LINE), "CRASH_LINES": str(line_count)}
        self.mount.start()
        self.mount.environment = {}

    def make_run(self, number: int) -> Path:
        name = f"2026-11-20_{number // 3600:02}-{number // 60 % 60:02}-{number % 60:02}"
        return self.mount.make_run(name, task=TASK)


class _Round:
    """The course of one round. Making it runs it."""

    def __init__(self, pair: Pair, plan: RoundPlan, number: int) -> None:
        self.report = RoundReport(plan)
        self._pair = pair
        self._plan = plan
        self._logs = pair.directory / f"logs-{number}"
        self._killed_at_seconds = math.inf
        self._writers: list[Writer] = []
        began_seconds = time.monotonic()
        overdue = threading.Timer(ROUND_SECONDS_MAX, self._give_up)
        overdue.start()
        try:
            self._run(number)
        except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            # Not only what is missing is a failure: also a mount that does not start, a file that cannot be read.
            self._fail("".join(traceback.format_exception(error)))
        finally:
            overdue.cancel()
            for writer in self._writers:
                writer.kill()
            self.report.seconds = time.monotonic() - began_seconds
        if not self.report.failures:
            shutil.rmtree(self._logs)  # of a failed round they stay, for who looks into it

    def _run(self, number: int) -> None:
        if self._plan.victim is Victim.MOUNT_AT_LINE:
            self._pair.restart_mount_to_die_at_line(self._plan.line_count)
        run = self._pair.make_run(number)
        self._start_writers(run)
        self._wait_for_moment()
        self._kill()
        records = [writer.finish() for writer in self._writers]
        trees = [self._replay(writer, record) for writer, record in zip(self._writers, records, strict=True)]
        in_flight = [record.in_flight for record in records]
        self._restart()
        place = run.relative_to(self._pair.mount.mount_point)
        if self._plan.victim is Victim.WORKSTATION:
            self._check_losses(trees, in_flight, self._observe(self._pair.mount, place))
        else:
            shown = self._observe(self._pair.mount, place)
            self._check(trees, in_flight, shown, "the mount")
            self._pair.mount.wait_durable()
            with self._pair.fresh_mount() as fresh:
                stored = self._observe(fresh, place)
            self._check(trees, in_flight, stored, "the master")
            if shown != stored:
                self._fail("the mount and the master do not show the same")
        self._check_logs()

    def _start_writers(self, run: Path) -> None:
        self._logs.mkdir()
        plan = self._plan
        announced = [plan.operation]
        if plan.victim in WITHOUT_MASTER:
            announced.insert(0, max(0, plan.operation - plan.away_operations))
        stays_alive = plan.victim is Victim.MASTER
        for number, seed in enumerate(plan.writer_seeds):
            name = f"writer-{number}"
            (run / name).mkdir()
            task = WriterTask(
                root=str(run / name),
                log=str(self._logs / f"{name}.log"),
                seed=seed,
                sync_share=plan.sync_share,
                asks_master=plan.asks_master,
                announced=announced,
                operation_count=plan.operation + (AFTERWARDS if stays_alive else ENDLESS),
            )
            self._writers.append(Writer(task))

    def _wait_for_moment(self) -> None:
        first = self._writers[0]
        first.wait_for_announcement(MOMENT_SECONDS_MAX)
        if self._plan.victim in WITHOUT_MASTER:
            if self._plan.victim is Victim.STALLED:
                os.kill(self._pair.master.pid, signal.SIGSTOP)
            else:
                self._pair.master.kill()
            first.wait_for_announcement(BACKLOG_SECONDS_MAX)
        time.sleep(self._plan.delay_seconds)

    def _kill(self) -> None:
        pair, victim = self._pair, self._plan.victim
        self._killed_at_seconds = time.monotonic()
        if victim is Victim.MASTER:
            pair.master.kill()
            self.report.staged = read_live_state(pair.mount.state_dir)
            time.sleep(self._plan.pause_seconds)
            pair.master.start()
            return
        if victim is Victim.MOUNT_AND_MASTER and self._plan.seed % 2:
            pair.master.kill()
        if victim is Victim.MOUNT_AT_LINE:
            os.kill(pair.mount.pid, ARM)
            with suppress(AssertionError):  # it may have nothing more to do
                pair.mount.wait_dead(seconds_max=LINE_SECONDS_MAX)
        pair.mount.kill()
        if victim is Victim.MOUNT_AND_MASTER:
            pair.master.kill()
        self.report.staged = read_dead_state(pair.mount.state_dir)

    def _restart(self) -> None:
        pair, victim = self._pair, self._plan.victim
        if victim is Victim.MASTER:
            return
        if victim in (Victim.MOUNT_AND_MASTER, Victim.MOUNT_AFTER_MASTER):
            pair.master.start()
        if victim is Victim.STALLED:
            os.kill(pair.master.pid, signal.SIGCONT)
        if victim is Victim.WORKSTATION:
            for directory in (pair.mount.state_dir, pair.mount.cache_dir):
                shutil.rmtree(directory)
                directory.mkdir(mode=0o700)
        pair.mount.start()
        if victim is Victim.MOUNT_TWICE:
            time.sleep(self._plan.pause_seconds)
            pair.mount.kill()
            pair.mount.start()

    def _replay(self, writer: Writer, record: WriterRecord) -> ExpectedTree:
        tree = ExpectedTree()
        for operation, acknowledgement in record.acknowledged:
            take(tree, operation, acknowledgement)
        self.report.acknowledged_count += len(record.acknowledged)
        self.report.closed_count += record.closed_count
        self.report.synced_count += record.synced_count
        failure = record.failure
        if failure is not None:
            survives = self._plan.victim is Victim.MASTER
            if survives or failure.moment_seconds < self._killed_at_seconds:
                name = errno.errorcode.get(failure.errno, failure.errno)
                self._fail(
                    f"{Path(writer.task.root).name}: {failure.operation.to_json()} was refused with {name}"
                )
        return tree

    def _observe(self, mount: MountProcess, place: Path) -> list[Observed]:
        roots = [mount.mount_point / place / Path(writer.task.root).name for writer in self._writers]
        return [observe(root) for root in roots]

    def _check(
        self,
        trees: Sequence[ExpectedTree],
        in_flight: Sequence[Operation | None],
        observed: Sequence[Observed],
        where: str,
    ) -> None:
        for number, (tree, operation, seen) in enumerate(zip(trees, in_flight, observed, strict=True)):
            for line in find_differences(tree, operation, seen):
                self._fail(f"{where}: writer-{number}/{line}")
            self.report.compared_files += sum(1 for _ in tree.files())

    def _check_losses(
        self,
        trees: Sequence[ExpectedTree],
        in_flight: Sequence[Operation | None],
        observed: Sequence[Observed],
    ) -> None:
        for number, (tree, operation, seen) in enumerate(zip(trees, in_flight, observed, strict=True)):
            losses, required_count = find_losses(tree, operation, seen)
            for line in losses:
                self._fail(f"the master: writer-{number}/{line}")
            self.report.required_files += required_count

    def _check_logs(self) -> None:
        for log in (self._pair.mount.log_text(), self._pair.master.log_text()):
            for sign in ("Traceback", "cannot be recovered"):
                if sign in log:
                    self._fail(f"{sign!r} is in a log:\n{log[log.index(sign) - 200 :][:4000]}")

    def _fail(self, what: str) -> None:
        self.report.failures.append(what)

    def _give_up(self) -> None:
        self._fail(f"it took more than {ROUND_SECONDS_MAX} s")
        for writer in self._writers:
            writer.kill()
        with suppress(ProcessLookupError):
            if self._pair.mount.pid:
                os.kill(self._pair.mount.pid, signal.SIGKILL)


def run_rounds(directory: Path, seeds: Iterable[int]) -> Generator[RoundReport, None, None]:
    """A round for each seed. After a failed one its processes are gone, and their files are left."""
    waiting = iter(seeds)
    for number in itertools.count():
        place = directory / f"pair-{number}"
        batch = list(itertools.islice(waiting, ROUNDS_PER_PAIR))
        if not batch:
            return
        with Pair(place) as pair:
            for seed in batch:
                report = pair.run(RoundPlan.draw(seed))
                yield report
                if report.failures:
                    return
        shutil.rmtree(place)

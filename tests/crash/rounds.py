"""One round: writers at work, kill -9 at a moment that the seed says, and everything acknowledged is looked for."""

from __future__ import annotations

import errno
import itertools
import math
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from crash.comparison import Observed, find_differences, find_losses, observe
from crash.expected_tree import ExpectedTree
from crash.log import WriterRecord, read_log
from crash.operations import Operation
from crash.writer import WriterTask, take
from support.master_process import MasterProcess
from support.mount_process import MountProcess
from support.staged_state import NOTHING_STAGED, StagedState, read_dead_state, read_live_state

USER: Final = "user-123"
TASK: Final = "crash"
OPTIONS: Final = "insecure,timeo=20"
TESTS: Final = Path(__file__).parents[1]

WRITER_COUNT: Final = 2

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

WRITER_SECONDS_MAX: Final = 60.0

ROUND_SECONDS_MAX: Final = 90.0
"""After that both daemons are killed, and the round fails by what that does to it."""

MOMENT_SECONDS_MAX: Final = 15.0
"""The moment of the kill has come when the first writer begins an operation, or after this."""

BACKLOG_SECONDS_MAX: Final = 1.5
"""The same while the master is away: an operation that needs it waits for it."""


class Victim(StrEnum):
    """Who dies."""

    MOUNT = "mount"
    MOUNT_TWICE = "mount twice"  # and once more when it has just begun to go on
    MOUNT_AND_MASTER = "mount and master"
    MOUNT_AT_LINE = "mount at line"  # of its write path: see death_at_line
    STALLED = "mount before stalled master"  # which then carries out what the dead mount had sent
    MASTER = "master"  # and the writers go on
    MOUNT_AFTER_MASTER = "mount after master"  # which is away for a while, so that there is a backlog
    WORKSTATION = "workstation"  # the mount, and its whole state directory is deleted


_SHARES: Final = {
    Victim.MOUNT: 15,
    Victim.MOUNT_TWICE: 8,
    Victim.MOUNT_AT_LINE: 25,
    Victim.MOUNT_AND_MASTER: 12,
    Victim.STALLED: 10,
    Victim.MASTER: 8,
    Victim.MOUNT_AFTER_MASTER: 15,
    Victim.WORKSTATION: 15,
}


_WITHOUT_MASTER: Final = (Victim.MOUNT_AFTER_MASTER, Victim.STALLED)


@dataclass(frozen=True)
class RoundPlan:
    """What follows from a round's seed alone."""

    seed: int
    victim: Victim
    operation: int
    """The moment: when the first writer begins this operation, counted from 0..."""
    delay_seconds: float
    """...and this long after it."""
    away_operations: int
    """For how many operations of the first writer the master is away before the mount is killed."""
    pause_seconds: float
    """Between two deaths, or for how long the master is away."""
    line_count: int
    """How many lines of the write path are carried out after the moment."""
    asks_master: bool
    """Whether the writers do what needs the master's answer. Where it is away they would wait for it."""
    sync_share: float
    writer_seeds: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int) -> RoundPlan:
        draw = random.Random(seed)
        (victim,) = draw.choices(list(_SHARES), list(_SHARES.values()))
        return cls(
            seed=seed,
            victim=victim,
            operation=draw.randint(15, 220),
            delay_seconds=draw.choice([0.0, draw.uniform(0, 0.005), draw.uniform(0, 0.06)]),
            away_operations=draw.randint(5, 60),
            pause_seconds=draw.uniform(0, 0.4),
            line_count=draw.randint(1, 6000),
            asks_master=victim not in _WITHOUT_MASTER or draw.random() < 0.4,
            sync_share=0.4 if victim is Victim.WORKSTATION else draw.choice([0.0, 0.05, 0.15]),
            writer_seeds=tuple(draw.getrandbits(48) for _ in range(WRITER_COUNT)),
        )


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


class Writer:
    """A writer's process, with its log and its complaints beside it."""

    def __init__(self, task: WriterTask) -> None:
        self.task = task
        self._complaints = Path(task.log).with_suffix(".stderr")
        self._lines: queue.Queue[str] = queue.Queue()
        with self._complaints.open("wb") as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "crash.writer", task.to_json()],
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_for_announcement(self, seconds_max: float) -> None:
        """Returns when the next announced operation begins, the writer ends, or the time is over."""
        with suppress(queue.Empty):
            self._lines.get(timeout=seconds_max)

    def finish(self) -> WriterRecord:
        """Waits for its end; what it logged. Fails when it ended by something else than the mount."""
        try:
            status = self._process.wait(WRITER_SECONDS_MAX)
        finally:
            self.kill()
        assert status == 0, self._complaints.read_text()
        return read_log(Path(self.task.log))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")


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
        finally:
            overdue.cancel()
            for writer in self._writers:
                writer.kill()
            self.report.seconds = time.monotonic() - began_seconds
        if not self.report.failures:
            shutil.rmtree(self._logs)

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
        if plan.victim in _WITHOUT_MASTER:
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
        if self._plan.victim in _WITHOUT_MASTER:
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

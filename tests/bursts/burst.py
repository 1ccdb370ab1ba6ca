"""Two mounts of one master, whose programs are at work under the same names at once while something befalls them, and
what has to be true once they are at rest.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bursts.plan import PROGRAM_COUNT, BurstPlan, Trouble
from bursts.program import EXPLAINED_BY_DEATH, Gate, Lock, Program
from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until
from support.network_proxy import NetworkProxy, Way
from support.tree_snapshot import Entry, differences, snapshot_tree
from support.xattrs import xattrs_below

logger = logging.getLogger(__name__)

USER: Final = "user-123"
TASK: Final = "bursts"
MOUNT_NAMES: Final = ("one", "other")

RUN_COUNT: Final = int(os.environ.get("BURST_RUNS", "3"))
"""In use at the same time: what patience alone tells apart is waited for once."""

TIMEO_SECONDS: Final = 60
"""No trouble is as long, on the slowest machine: what needs the master waits, and is not refused."""

CALLS_SECONDS_MAX: Final = 120.0
"""For a burst whose calls wait for whatever there is to be waited for."""

AGREE_SECONDS_MAX: Final = 60.0
"""What W10 promises."""

LOOK_SECONDS: Final = 0.25
"""Between two looks at what mounts show."""

Shown = tuple[dict[bytes, Entry], dict[bytes, dict[str, bytes]]]


class Pair:
    """A master and two mounts, each behind a network of its own. Used as a context."""

    def __init__(self, directory: Path, plan: BurstPlan) -> None:
        self.plan = plan
        self._directory = directory
        self._options = f"insecure,timeo={TIMEO_SECONDS}" + (",xattr" if plan.has_xattrs else "")
        self._master = MasterProcess(directory / "master")
        self._opened = ExitStack()
        self._networks: list[NetworkProxy] = []
        self.mounts: list[MountProcess] = []
        self._gates = [Gate() for _ in MOUNT_NAMES]

    def __enter__(self) -> Pair:
        with ExitStack() as opening:
            opening.callback(self._master.kill)
            self._master.start()
            for name in MOUNT_NAMES:
                network = opening.enter_context(NetworkProxy(self._master.address))
                self._networks.append(network)
                self.mounts.append(opening.enter_context(self._mounted(name, network.address)))
            self._opened = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @contextmanager
    def _mounted(self, name: str, address: str) -> Iterator[MountProcess]:
        token = self._master.make_token(USER)
        mount = MountProcess(self._directory / name, address, token, options=self._options)
        try:
            mount.start()
            yield mount
        finally:
            mount.kill()

    @contextmanager
    def fresh_mount(self) -> Iterator[MountProcess]:
        """As on a third machine: with an empty cache and an empty state directory."""
        with self._mounted("fresh", self._master.address) as mount:
            yield mount
        shutil.rmtree(self._directory / "fresh")

    def make_runs(self) -> list[Path]:
        """Their places in any mount; each mount has looked into them."""
        runs = []
        for number in range(RUN_COUNT):
            run = self.mounts[0].make_run(f"2026-11-20_15-04-{number:02}", task=TASK)
            runs.append(run.relative_to(self.mounts[0].mount_point))
        for mount in self.mounts:
            for run in runs:
                wait_until((mount.mount_point / run).is_dir, "the run on each mount")
                assert os.listdir(mount.mount_point / run) == []
        return runs

    def run_burst(self, runs: Sequence[Path]) -> list[list[Program]]:
        """The programs of each run, which have ended; all is well again."""
        plan = self.plan
        groups: list[list[Program]] = []
        for run in runs:
            group = []
            for name, mount, gate in zip(MOUNT_NAMES, self.mounts, self._gates, strict=True):
                lock = Lock()
                for number in range(PROGRAM_COUNT):
                    seed = f"{plan.seed} {run}"
                    group.append(Program(mount.mount_point / run, name, number, seed, gate, lock))
            groups.append(group)
        programs = [program for group in groups for program in group]
        explained: frozenset[int] = frozenset() if plan.has_xattrs else frozenset({errno.EOPNOTSUPP})
        if plan.trouble is Trouble.KILL:
            explained |= EXPLAINED_BY_DEATH
        for network, delay_seconds in zip(self._networks, plan.delays_seconds, strict=True):
            network.slow_down(delay_seconds=delay_seconds)
        executor = ThreadPoolExecutor(len(programs))
        try:
            calling = [executor.submit(program.run, plan.call_count, explained) for program in programs]
            time.sleep(plan.trouble_after_seconds)
            self._make_trouble()
            began_seconds = time.monotonic()
            _, stuck = wait(calling, timeout=CALLS_SECONDS_MAX)
            logger.info("the calls ended %.1f s after the trouble", time.monotonic() - began_seconds)
            if stuck:
                for mount in self.mounts:
                    mount.kill()  # or they would never end
            assert not stuck, f"{len(stuck)} programs are stuck"
        finally:
            executor.shutdown(cancel_futures=True)
        for future in calling:
            future.result()
        for network in self._networks:
            network.slow_down()
        return groups

    def _make_trouble(self) -> None:
        plan = self.plan
        networks = [self._networks[index] for index in plan.victims]
        if plan.trouble is Trouble.MASTER:
            self._master.kill()
            time.sleep(plan.trouble_seconds)
            self._master.start()
        for index in plan.victims:
            if plan.trouble is Trouble.KILL:
                self.mounts[index].restart()
            elif plan.trouble is Trouble.REMOUNT:
                with self._gates[index].closed():
                    self.mounts[index].umount()
                    self.mounts[index].start()
        match plan.trouble:
            case Trouble.CUT:
                for network in networks * 3:
                    network.cut()
                    time.sleep(plan.trouble_seconds / 3)
            case Trouble.ABSENCE:
                for network in networks:
                    network.refuse()
                time.sleep(plan.trouble_seconds)
            case Trouble.SILENCE:
                for network in networks:
                    network.swallow(Way.TO_MOUNT if plan.seed % 2 else Way.TO_MASTER)
                time.sleep(plan.trouble_seconds)
        for network in networks:
            network.restore()

    # --- afterwards ----------------------------------------------------------------------------------------

    def wait_agreed(self, runs: Sequence[Path], groups: Sequence[Sequence[Program]]) -> None:
        """Returns when all is durable, and both mounts and a third show the same of each run; fails where they do not
        within the time that is promised.
        """
        began_seconds = time.monotonic()
        for mount in self.mounts:
            mount.wait_durable()
        logger.info("durable after %.1f s", time.monotonic() - began_seconds)
        rested_seconds = time.monotonic()
        with self.fresh_mount() as fresh:
            while True:
                unlike = {run: found for run in runs if (found := self._differences(run, fresh))}
                if not unlike:
                    logger.info("the same after %.1f s at rest", time.monotonic() - rested_seconds)
                    return
                if time.monotonic() > rested_seconds + AGREE_SECONDS_MAX:
                    story = "\n".join(
                        tell(group) for run, group in zip(runs, groups, strict=True) if run in unlike
                    )
                    raise AssertionError(f"{self.plan.words}\n{unlike}\n{story}")
                time.sleep(LOOK_SECONDS)

    def _differences(self, run: Path, fresh: MountProcess) -> dict[str, object]:
        """By the mount's name: what it shows otherwise than the fresh one."""
        found: dict[str, object] = {}
        try:
            trees = [self._look(mount, run) for mount in (*self.mounts, fresh)]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODATA, errno.ESTALE):
                raise
            return {"news are still coming": error}
        for name, (shown, xattrs) in zip(MOUNT_NAMES, trees, strict=False):
            names = differences(shown, trees[-1][0])
            if names or xattrs != trees[-1][1]:
                found[name] = names or (xattrs, trees[-1][1])
        return found

    def _look(self, mount: MountProcess, run: Path) -> Shown:
        """What a program can see of a run."""
        place = mount.mount_point / run
        return snapshot_tree(place), xattrs_below(place) if self.plan.has_xattrs else {}


def tell(programs: Sequence[Program]) -> str:
    """What programs did, in the order in which it began."""
    lines = sorted(line for program in programs for line in program.story)
    return "\n".join(f"{moment_seconds - lines[0][0]:7.3f} {words}" for moment_seconds, words in lines)

"""Two mounts of one master whose programs make, rename and remove under the same few names at the same time, while
daemons die, networks are cut or the master starts anew: once they are at rest, both and a third one, which has never
seen any of it, show the same; and what only one of the programs had a hand in is as that left it.

The seed decides the calls and the trouble; what meets what is left to chance. BURST_SEEDS=100 tries more of them,
BURST_SEED=7 begins there, and BURST_RUNS=6 has more runs in use at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from bursts.burst import Pair, tell
from bursts.plan import BurstPlan
from bursts.program import WHOLE_NAMES, Program
from bursts.whole_content import is_whole
from crowd.crowd import sweep
from support.held import Held, held_by
from support.mount_process import MountProcess, wait_until

logger = logging.getLogger(__name__)

# What `make test` does: a death.
FIRST_SEED: Final = int(os.environ.get("BURST_SEED", "25"))
SEEDS: Final = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("BURST_SEEDS", "1")))


def find_wrong_contents(run: Path, programs: Sequence[Program]) -> list[str]:
    """What is in a run at rest that no order of its programs' calls has left there."""
    wrong = []
    places: dict[str, list[Path]] = {}
    for directory, _, names in os.walk(run):
        for name in names:
            places.setdefault(name, []).append(Path(directory, name))
    for path in (path for name in WHOLE_NAMES for path in places.get(name, [])):
        if not is_whole(path.read_bytes()):
            wrong.append(f"{path} is nothing that somebody has written as a whole")
    for program in programs:
        found = [path for name in program.own_names for path in places.get(name, [])]
        if program.may_have_two:
            continue
        if len(found) != program.has_own:
            wrong.append(f"the file of {program.name} is at {found}")
        for path in found:
            lines = path.read_bytes().splitlines(keepends=True)
            sure = [line for line in lines if line in set(program.own_lines)]
            if sure != program.own_lines or not program.may_have_lines.issuperset(lines):
                wrong.append(f"{path} of {program.name} has {lines} and was given {program.own_lines}")
    return wrong


def remove_empty_directories(run: Path) -> None:
    """What is listed as empty can be removed."""
    for directory, directories, files in os.walk(run, topdown=False):
        if not directories and not files and Path(directory) != run:
            os.rmdir(directory)


def is_empty(run: Path) -> bool:
    return os.listdir(run) == []


def holds(mount: MountProcess, held: Held) -> bool:
    now = held_by(mount)
    if now != held:
        logger.info("%s holds %s", mount.mount_point, now)
    return now == held


@pytest.mark.timeout(400)  # the sum of what may be waited for, which is a minute for the promise alone
@pytest.mark.parametrize("seed", SEEDS)
def test_two_mounts_at_rest_show_the_same_as_a_third(tmp_path: Path, seed: int) -> None:
    """W10. Whatever mounts do at the same time under the same names, once they are at rest they show the same, within a
    minute at most.
    """
    plan = BurstPlan.draw(seed)
    logger.info(plan.words)
    with Pair(tmp_path, plan) as pair:
        runs = pair.make_runs()
        before = held_by(pair.mounts[1])

        groups = pair.run_burst(runs)

        pair.wait_agreed(runs, groups)

        for number, (run, programs) in enumerate(zip(runs, groups, strict=True)):
            mount = pair.mounts[number % 2]
            surprises = [surprise for program in programs for surprise in program.surprises]
            surprises += find_wrong_contents(mount.mount_point / run, programs)
            assert not surprises, f"{plan.words}\n{surprises}\n{tell(programs)}"
            remove_empty_directories(mount.mount_point / run)
            sweep(mount.mount_point / run)
        logger.info("all is removed")
        for mount in pair.mounts:
            mount.wait_durable()
        for mount in pair.mounts:
            for run in runs:
                wait_until(partial(is_empty, mount.mount_point / run), "an empty run")
            wait_until(partial(holds, mount, before), f"{before} and no more in {mount.mount_point}")
            assert "Traceback" not in mount.log_text()

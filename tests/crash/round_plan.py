"""What follows from a round's seed alone: who dies, when, and what the writers do until then."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

WRITER_COUNT: Final = 2


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


WITHOUT_MASTER: Final = (Victim.MOUNT_AFTER_MASTER, Victim.STALLED)


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
            asks_master=victim not in WITHOUT_MASTER or draw.random() < 0.4,
            sync_share=0.4 if victim is Victim.WORKSTATION else draw.choice([0.0, 0.05, 0.15]),
            writer_seeds=tuple(draw.getrandbits(48) for _ in range(WRITER_COUNT)),
        )

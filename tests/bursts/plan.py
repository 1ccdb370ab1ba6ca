"""What follows from a seed alone: how two mounts are called at the same time, and what befalls them meanwhile."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PROGRAM_COUNT: Final = 2
"""On each mount, in each run."""


class Trouble(StrEnum):
    """What befalls a mount, or both, while programs are at work."""

    NONE = "none"
    REMOUNT = "umount and mount"  # its programs hold still meanwhile, the other's do not
    KILL = "kill -9 and mount"
    CUT = "connections are cut"
    ABSENCE = "no connections for a while"
    SILENCE = "the network swallows what it is given for a while"
    MASTER = "kill -9 of the master"


_SHARES: Final = {
    Trouble.NONE: 3,
    Trouble.REMOUNT: 2,
    Trouble.KILL: 4,
    Trouble.CUT: 2,
    Trouble.ABSENCE: 2,
    Trouble.SILENCE: 1,
    Trouble.MASTER: 2,
}


@dataclass(frozen=True)
class BurstPlan:
    seed: int
    trouble: Trouble
    trouble_after_seconds: float
    """From the beginning of the burst."""
    trouble_seconds: float
    victims: tuple[int, ...]
    """Which of the mounts, by their index."""
    delays_seconds: tuple[float, ...]
    """How long the network of each mount holds what it is given: news and answers come in other orders then."""
    has_xattrs: bool
    call_count: int
    """Of each program."""

    @classmethod
    def draw(cls, seed: int) -> BurstPlan:
        draw = random.Random(seed)
        (trouble,) = draw.choices(list(_SHARES), list(_SHARES.values()))
        return cls(
            seed=seed,
            trouble=trouble,
            trouble_after_seconds=draw.uniform(0.02, 0.6),
            trouble_seconds=draw.uniform(0.1, 1.5),
            victims=draw.choice([(0,), (1,), (0, 1)]),
            delays_seconds=tuple(draw.choice([0.0, 0.0, 0.002, 0.01, 0.05]) for _ in range(2)),
            has_xattrs=draw.random() < 0.7,
            call_count=draw.choice([20, 40, 80]),
        )

    @property
    def words(self) -> str:
        """For people."""
        return (
            f"seed {self.seed}: {self.trouble} after {self.trouble_after_seconds:.2f} s for "
            f"{self.trouble_seconds:.2f} s, of {self.victims}, delays {self.delays_seconds}, "
            f"{self.call_count} calls, {'with' if self.has_xattrs else 'without'} extended attributes"
        )

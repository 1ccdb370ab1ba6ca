"""How far this machine's clock is from the master's, as far as one answer can tell.

Nothing here depends on either clock: what a wrong one spoils are certificates, the ends of tokens, and the times of
files that are made on two machines.
"""

from __future__ import annotations

from typing import Final

CLOCK_SECONDS_NOTED: Final = 5.0

CLOCK_ADVICE: Final = "`timedatectl set-ntp true` on both machines"


def find_ahead_seconds(master_now_ns: int, began_at_ns: int, round_trip_seconds: float) -> float:
    """How far the master's clock is before ours, to within half a round trip, which began at our time given.

    The master looked at its clock in between; which way took longer is not known.
    """
    halfway_ns = began_at_ns + round(round_trip_seconds / 2 * 1e9)
    return (master_now_ns - halfway_ns) / 1e9


def describe_difference(ahead_seconds: float, round_trip_seconds: float) -> str:
    """Where this machine's clock is for certain; "" for one that agrees with the master's."""
    # A slow answer says less: what it took may all have been one way.
    certain_seconds = abs(ahead_seconds) - round_trip_seconds / 2
    if certain_seconds <= CLOCK_SECONDS_NOTED:
        return ""
    side = "behind" if ahead_seconds > 0 else "ahead of"
    return f"at least {certain_seconds:.0f} s {side} the master's"

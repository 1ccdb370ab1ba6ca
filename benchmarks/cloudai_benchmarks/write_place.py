"""Where a job writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cloudai_benchmarks.arrival import Arrival


@dataclass(frozen=True, kw_only=True)
class MasterPlace:
    """A master of ours on the loopback, to be called without a mount."""

    address: str
    token_file: str
    certificate: str | None
    """None without TLS."""
    user: str
    pids: list[int]
    """Its processes, for who holds it up."""


@dataclass(frozen=True, kw_only=True)
class WritePlace:
    """Empty directories on mounts that were made for it."""

    directories: list[Path]
    """One for each writer, each on a mount of its own."""
    arrivals: list[Arrival]
    """How it is known that the server has what is in each of them."""
    followed: Path | None = None
    """The first directory on yet another mount, when somebody reads there meanwhile."""
    master: MasterPlace | None = None
    """The server itself, where it is ours."""
    mount_command: list[str] = field(default_factory=list)
    """Makes the first writer's mount again, where it is ours."""

    @property
    def directory(self) -> Path:
        """Of the only writer."""
        (directory,) = self.directories
        return directory

    @property
    def arrival(self) -> Arrival:
        """Of the only writer's directory."""
        (arrival,) = self.arrivals
        return arrival

    def to_json(self) -> dict[str, Any]:
        return {
            "directories": [str(directory) for directory in self.directories],
            "arrivals": [asdict(arrival) for arrival in self.arrivals],
            "followed": str(self.followed) if self.followed else None,
            "master": asdict(self.master) if self.master else None,
            "mount_command": self.mount_command,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> WritePlace:
        return cls(
            directories=[Path(directory) for directory in fields["directories"]],
            arrivals=[Arrival(**arrival) for arrival in fields["arrivals"]],
            followed=Path(fields["followed"]) if fields["followed"] else None,
            master=MasterPlace(**fields["master"]) if fields["master"] else None,
            mount_command=fields["mount_command"],
        )

"""The JSON file of a run: everything that was measured, and what follows from it for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cloudai_benchmarks.machine import Machine
from cloudai_benchmarks.results import DaemonCosts, Measurement, Results

FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    machine: Machine
    options: Mapping[str, Any]
    titles: Mapping[str, str]
    results: Results
    daemon_costs: DaemonCosts | None

    def write(self, path: Path) -> None:
        """The summary in it is for other programs; reading makes it anew."""
        fields = {
            "format": FORMAT,
            "machine": asdict(self.machine),
            "options": dict(self.options),
            "titles": dict(self.titles),
            "summary": _summarize(self.results),
            "daemon": asdict(self.daemon_costs) if self.daemon_costs else None,
            "measurements": [asdict(measurement) for measurement in self.results.measurements],
        }
        path.write_text(json.dumps(fields, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> ResultFile:
        """Raises ValueError for a file of another format."""
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError(f"{path}: no results of format {FORMAT}")
        return cls(
            machine=Machine(**fields["machine"]),
            options=fields["options"],
            titles=fields["titles"],
            results=Results(Measurement(**entry) for entry in fields["measurements"]),
            daemon_costs=DaemonCosts(**fields["daemon"]) if fields["daemon"] else None,
        )


def _summarize(results: Results) -> list[dict[str, Any]]:
    contenders = list(dict.fromkeys(each.contender for each in results.measurements))
    summaries = []
    for row in results.rows():
        for contender in contenders:
            summary = results.summarize(row, contender)
            if summary is None:
                continue
            summaries.append(
                {
                    **asdict(row),
                    "contender": contender,
                    "median_seconds": summary.median_seconds,
                    "least_seconds": min(summary.seconds, default=None),
                    "most_seconds": max(summary.seconds, default=None),
                    "error_count": len(summary.errors),
                    "ratios": {
                        peer: ratio
                        for peer in contenders
                        if peer != contender and (ratio := results.ratio(row, contender, peer)) is not None
                    },
                }
            )
    return summaries

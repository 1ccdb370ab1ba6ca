"""The medians as bars, one group for each row of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.patches import Patch

from cloudai_benchmarks.results import Results

_GROUP_INCHES = 0.9
_COLORS = {
    "local": "#9a9a9a",
    "cloudai": "#0b6e4f",
    "cloudai-user": "#4fae8b",
    "cloudai-xattr": "#7bbfa3",
    "cloudai-tls": "#a3d5c0",
    "sshfs": "#d1793b",
    "rclone": "#5b7bb4",
}


def draw_chart(
    results: Results, contenders: Sequence[str], titles: Mapping[str, str], note: str, path: Path
) -> None:
    """Writes a PNG: seconds on a logarithmic scale, the spread of the rounds as whiskers. Failures have no bar."""
    rows = results.rows()
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + _GROUP_INCHES * len(rows)), layout="constrained")
    bar_height = 0.8 / len(contenders)
    for index, contender in enumerate(contenders):
        for place, row in enumerate(rows):
            summary = results.summarize(row, contender)
            if summary is None or summary.median_seconds is None:
                continue
            median = summary.median_seconds
            axes.barh(
                place + (index - (len(contenders) - 1) / 2) * bar_height,
                median,
                bar_height,
                xerr=[[median - min(summary.seconds)], [max(summary.seconds) - median]],
                color=_COLORS.get(contender),
                ecolor="#333333",
            )
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds, less is better\n{note}")
    axes.set_yticks(
        range(len(rows)), [f"{titles.get(row.workload, row.workload)}, {row.phase}" for row in rows]
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
    axes.grid(axis="x", alpha=0.3)
    handles = [Patch(color=_COLORS.get(name)) for name in contenders]
    axes.legend(handles, contenders, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

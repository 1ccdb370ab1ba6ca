"""What is measured besides seconds until something is done: names, titles, and the most that is good enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SENT_SHARE: Final = "sent-share"
BEHIND_MOST_SECONDS: Final = "behind-most-seconds"
BEHIND_MEDIAN_SECONDS: Final = "behind-median-seconds"
LATENCY_MEDIAN_SECONDS: Final = "latency-median-seconds"
LATENCY_P99_SECONDS: Final = "latency-p99-seconds"
LATENCY_MOST_SECONDS: Final = "latency-most-seconds"
FILES_PER_SECOND: Final = "files-per-second"
CALL_MEDIAN_SECONDS: Final = "call-median-seconds"
CALL_P99_SECONDS: Final = "call-p99-seconds"

FIGURE_TITLES: Final[Mapping[str, str]] = {
    SENT_SHARE: "bytes sent / bytes written",
    BEHIND_MOST_SECONDS: "a reader elsewhere behind, at most, s",
    BEHIND_MEDIAN_SECONDS: "a reader elsewhere behind, median of its looks, s",
    LATENCY_MEDIAN_SECONDS: "write() of 4 KiB, median, s",
    LATENCY_P99_SECONDS: "write() of 4 KiB, 99th percentile, s",
    LATENCY_MOST_SECONDS: "write() of 4 KiB, most, s",
    FILES_PER_SECOND: "files per second at the server",
    CALL_MEDIAN_SECONDS: "a commit, median, s",
    CALL_P99_SECONDS: "a commit, 99th percentile, s",
}
"""In the order of the report."""

FIGURE_TARGETS: Final[Mapping[tuple[str, str], float]] = {
    ("checkpoint", SENT_SHARE): 0.15,
    ("log-lines", SENT_SHARE): 2.0,
    ("log-follow", SENT_SHARE): 2.0,
    ("log-follow", BEHIND_MOST_SECONDS): 2.0,
    ("write-latency", LATENCY_MEDIAN_SECONDS): 0.001,
    ("write-latency", LATENCY_P99_SECONDS): 0.020,
}
"""Of ours, by workload and figure."""

LATENCY_UPLOAD_GIB: Final = 10.0
"""What the goals of the latency were set beside; the default uploads less, and takes less disk."""

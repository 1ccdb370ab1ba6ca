"""How long pods of a node wait for their volumes when the container of its CSI driver was killed.

    PYTHONPATH=tests .venv/bin/python benchmarks/volume_repairs.py

A real master, a real driver, and 1, 4 and 8 volumes, each published once with a file in it. All processes of the driver
are killed and it is started anew; the clock runs from the moment it answers until the file of each volume can be read
again. Printed: seconds until the first, the middle and the last of them, the medians of the rounds. Root only, with
$CLOUDAI_RUNTIME_DIR naming a directory of its own where anything else is mounted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from support.csi_driver_process import CsiDriverProcess
from support.files import has_content
from support.master_process import MasterProcess
from support.mount_process import wait_until

VOLUME_COUNTS = (1, 4, 8)
ROUND_COUNT = 3
USER = "user-123"
RETURN_SECONDS_MAX = 120.0


def publish(driver: CsiDriverProcess, token: str, number: int) -> Path:
    """The file of one volume, at its pod's place."""
    path = driver.publish_new(token, f"pvc-{number}", f"pod-{number}").target / "file"
    path.write_text("content")
    return path


def measure(driver: CsiDriverProcess, paths: Sequence[Path]) -> list[float]:
    """Seconds until each of the files was there again, sorted."""
    driver.kill_container()
    driver.start()
    began_seconds = time.monotonic()
    returned: dict[Path, float] = {}

    def are_all_there() -> bool:
        for path in paths:
            if path not in returned and has_content(path, "content"):
                returned[path] = time.monotonic() - began_seconds
        return len(returned) == len(paths)

    wait_until(are_all_there, "all volumes", seconds_max=RETURN_SECONDS_MAX)
    return sorted(returned.values())


def main() -> None:
    print("| volumes | first, s | middle, s | last, s |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        master = MasterProcess(Path(directory) / "master")
        master.start()
        token = master.make_token(USER)
        driver = CsiDriverProcess(Path(directory) / "csi", master.address, "--node-id", "node-1")
        try:
            driver.start()
            paths: list[Path] = []
            for volume_count in VOLUME_COUNTS:
                paths += [publish(driver, token, number) for number in range(len(paths), volume_count)]
                rounds = [measure(driver, paths) for _ in range(ROUND_COUNT)]
                first, middle, last = (
                    statistics.median(taken[place] for taken in rounds)
                    for place in (0, volume_count // 2, volume_count - 1)
                )
                print(f"| {volume_count} | {first:.1f} | {middle:.1f} | {last:.1f} |", flush=True)
        finally:
            driver.clear()
            master.terminate()


if __name__ == "__main__":
    main()

"""What batching commits is worth: one node in a call against 10, 100 and 1,000 of them.

    PYTHONPATH=tests .venv/bin/python benchmarks/commit_batch.py

A real master process on this machine, one GrpcMasterClient beside trio, one call at a time. Each round commits the
same number of new nodes, a directory and nine files of 200 bytes in turn, in every way once; rounds are interleaved
so that a slow second falls on all of them. Printed: milliseconds per node, the median of the rounds.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from pathlib import Path

import trio

from cloudai_fusefs.master_client import MasterClient
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types
from support.master_process import MasterProcess
from support.storage_requests import USER, commit, directory_commit, file_commit, make_run

BATCH_COUNTS = (1, 10, 100, 1000)
ROUND_COUNT = 5
NODE_COUNT = 1000  # of each way in each round
FILES_PER_DIRECTORY = 9
FILE_BYTES = 200


def make_commits(label: str) -> list[names.NodeCommit]:
    """The nodes of one way in one round, each directory before its files."""
    commits: list[names.NodeCommit] = []
    while len(commits) < NODE_COUNT:
        directory = f"{label}-{len(commits)}".encode()
        commits.append(directory_commit(directory))
        for number in range(FILES_PER_DIRECTORY):
            data = secrets.token_bytes(FILE_BYTES)
            commits.append(file_commit(directory + b"/file-%d" % number, data))
    return commits[:NODE_COUNT]


async def measure(client: MasterClient, run: types.Run, label: str, batch_count: int) -> float:
    """Milliseconds per node."""
    commits = make_commits(label)
    began_seconds = time.perf_counter()
    for start in range(0, NODE_COUNT, batch_count):
        response = await commit(client, run, *commits[start : start + batch_count])
        assert not any(result.HasField("error") for result in response.results)
    return (time.perf_counter() - began_seconds) * 1000 / NODE_COUNT


async def measure_all(master: MasterProcess) -> dict[int, float]:
    token = master.make_token(USER)
    rounds: dict[int, list[float]] = {batch_count: [] for batch_count in BATCH_COUNTS}
    async with master.connect(token) as client:
        run = await make_run(client, USER)
        await measure(client, run, "warm", 100)
        for number in range(ROUND_COUNT):
            for batch_count in BATCH_COUNTS:
                label = f"{number}-{batch_count}"
                rounds[batch_count].append(await measure(client, run, label, batch_count))
    return {batch_count: statistics.median(taken) for batch_count, taken in rounds.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        master = MasterProcess(Path(directory) / "master")
        master.start()
        try:
            medians = trio.run(measure_all, master)
        finally:
            master.terminate()
    print("| nodes in a call | ms per node | ms per call |")
    print("| --- | --- | --- |")
    for batch_count, taken in medians.items():
        print(f"| {batch_count:,} | {taken:.3f} | {taken * batch_count:.1f} |")


if __name__ == "__main__":
    main()

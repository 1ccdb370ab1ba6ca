"""One client of a master without a mount: commits small files, one call after another.

A process of its own: `python -m cloudai_benchmarks.commit_client`. It takes its orders as JSON in one line, says when
it is ready, begins with the next line, and answers with the seconds of each call.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path

import trio

from cloudai_benchmarks.commit_orders import FILES_PER_COMMIT, READY, Orders, contents
from cloudai_benchmarks.write_place import MasterPlace
from cloudai_fusefs.grpc_master_client import GrpcMasterClient
from cloudai_model.chunks import digest_of
from cloudai_model.limits import NODE_ID_MIN
from cloudai_proto.storage.v1 import names_pb2 as names
from cloudai_proto.storage.v1 import types_pb2 as types


async def commit_all(orders: Orders) -> list[float]:
    """The seconds of each call."""
    master = orders.master
    certificates = _read_certificates(master)
    async with GrpcMasterClient(
        master.address,
        token_provider=lambda: Path(master.token_file).read_text().strip(),
        insecure=certificates is None,
        root_certificates=certificates,
    ) as client:
        run = await client.create_run(
            names.CreateRunRequest(request_id=secrets.token_bytes(16), user=master.user, task=orders.task)
        )
        commits = [_file_commit(name, data) for name, data in contents(orders)]
        print(READY, flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        taken_seconds = []
        for begin in range(0, len(commits), FILES_PER_COMMIT):
            began_seconds = time.perf_counter()
            response = await client.commit_nodes(
                names.CommitNodesRequest(
                    request_id=secrets.token_bytes(16),
                    task_id=run.task_id,
                    commits=commits[begin : begin + FILES_PER_COMMIT],
                )
            )
            taken_seconds.append(time.perf_counter() - began_seconds)
            refused = [result.error for result in response.results if result.HasField("error")]
            if refused:
                raise SystemExit(f"refused: {refused[0]}")
        return taken_seconds


def _read_certificates(master: MasterPlace) -> bytes | None:
    return Path(master.certificate).read_bytes() if master.certificate else None


def _file_commit(name: str, data: bytes) -> names.NodeCommit:
    return names.NodeCommit(
        node_id=NODE_ID_MIN + secrets.randbits(60),
        kind=types.NODE_KIND_FILE,
        path=os.fsencode(name),
        place=True,
        attributes=types.Attributes(mode=0o644, uid=os.getuid(), gid=os.getgid(), mtime_ns=time.time_ns()),
        data=data,
        size_bytes=len(data),
        digest=digest_of(data),
    )


def main() -> None:
    fields = json.loads(sys.stdin.readline())
    orders = Orders(**{**fields, "master": MasterPlace(**fields["master"])})
    print(json.dumps(trio.run(commit_all, orders)), flush=True)


if __name__ == "__main__":
    main()

"""The composition root of a master process: builds the parts, serves, and takes them down in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_master.chunk_store import ChunkStore
from cloudai_master.data_dir import DataDir
from cloudai_master.database import Database
from cloudai_master.disk_chunk_store import DiskChunkStore
from cloudai_master.periodic_scrub import PeriodicScrub
from cloudai_master.rpc import RpcServer
from cloudai_master.service import StorageService
from cloudai_master.service_notifier import ServiceNotifier
from cloudai_master.tokens import Tokens, load_key
from cloudai_master.wakeups import Wakeups
from cloudai_model.memory import freeze_loaded_objects, keep_freed_memory

log = logging.getLogger(__name__)

STOP_GRACE_SECONDS: Final = 5.0
CALLS_END_SECONDS_MAX: Final = 1.0
HOUSEKEEPING_SECONDS: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    data_dir: Path
    host: str
    port: int
    """0: one that is free."""
    certificate: tuple[bytes, bytes] | None
    """(private key, certificate chain) in PEM; None: no TLS."""
    scrub_interval_seconds: float
    """From the beginning of one pass over all chunks to the next; 0: none."""


async def serve(config: ServeConfig, on_ready: Callable[[int], None]) -> None:
    """Serves until SIGTERM or SIGINT, then ends the calls under way and returns.

    `on_ready` is called once with the port. Raises DataDirTaken, OSError, or a CloudAIError of the database.
    """
    keep_freed_memory()
    # The thresholds stay: each call of gRPC leaves a cycle behind, which may hold its answer.
    freeze_loaded_objects()
    data_dir = DataDir(config.data_dir)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    wakeups = Wakeups(loop)
    with data_dir.locked():
        database = data_dir.open_database(wakeups.announce)
        try:
            store = DiskChunkStore(data_dir.path)
            tokens = Tokens(database, load_key(data_dir.key_path))
            service = StorageService(database, store, tokens)
            server = RpcServer(service, tokens, wakeups)
            host = f"[{config.host}]" if ":" in config.host else config.host
            on_ready(await server.start(f"{host}:{config.port}", config.certificate))
            notifier = ServiceNotifier()
            notifier.tell_ready()
            beside = [asyncio.create_task(task) for task in (_keep_house(service), notifier.tell_alive())]
            with _scrubbing(database, store, config.scrub_interval_seconds):
                await stop.wait()
                log.info("stopping")
                notifier.tell_stopping()
                for task in beside:
                    task.cancel()
                await server.stop(STOP_GRACE_SECONDS)
                await _wait_for_calls()
        finally:
            database.close()


async def _wait_for_calls() -> None:
    """gRPC has not ended the tasks of cancelled calls when its server has stopped: torn down with the loop, each
    would log a traceback (https://github.com/grpc/grpc/issues/37239).
    """
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if tasks:
        await asyncio.wait(tasks, timeout=CALLS_END_SECONDS_MAX)


async def _keep_house(service: StorageService) -> None:
    while True:
        try:
            await asyncio.to_thread(service.forget_old)
        except Exception:
            # Old rows cost space and nothing else: the next hour tries again.
            log.exception("housekeeping failed")
        await asyncio.sleep(HOUSEKEEPING_SECONDS)


@contextmanager
def _scrubbing(database: Database, store: ChunkStore, interval_seconds: float) -> Iterator[None]:
    """Scrubs on a thread of its own during the block; at its end, the thread is."""
    if not interval_seconds:
        yield
        return
    scrub = PeriodicScrub(database, store, interval_seconds)
    thread = threading.Thread(target=_scrub, args=(scrub,), name="scrub")
    thread.start()
    try:
        yield
    finally:
        scrub.stop()
        thread.join()


def _scrub(scrub: PeriodicScrub) -> None:
    while not scrub.wait(0):
        try:
            scrub.run()
        except Exception:
            # A pass goes on where it stood: the next hour tries again.
            log.exception("the scrub failed")
            scrub.wait(HOUSEKEEPING_SECONDS)

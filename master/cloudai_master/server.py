"""The composition root of a master process: builds the parts, serves, and takes them down in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloudai_master.data_dir import DataDir
from cloudai_master.disk_chunk_store import DiskChunkStore
from cloudai_master.rpc import RpcServer
from cloudai_master.service import StorageService
from cloudai_master.tokens import Tokens, load_key
from cloudai_master.wakeups import Wakeups

log: Final = logging.getLogger(__name__)

STOP_GRACE_SECONDS: Final = 5.0
HOUSEKEEPING_SECONDS: Final = 3600.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    data_dir: Path
    host: str
    port: int
    """0: one that is free."""
    certificate: tuple[bytes, bytes] | None
    """(private key, certificate chain) in PEM; None: no TLS."""


async def serve(config: ServeConfig, on_ready: Callable[[int], None]) -> None:
    """Serves until SIGTERM or SIGINT, then ends the calls under way and returns.

    `on_ready` is called once with the port. Raises DataDirTaken, OSError, or a CloudAIError of the database.
    """
    data_dir = DataDir(config.data_dir)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    wakeups = Wakeups(loop)
    with data_dir.locked():
        database = data_dir.open_database(wakeups.announce)
        try:
            service = StorageService(database, DiskChunkStore(data_dir.path))
            server = RpcServer(service, Tokens(database, load_key(data_dir.key_path)), wakeups)
            host = f"[{config.host}]" if ":" in config.host else config.host
            on_ready(await server.start(f"{host}:{config.port}", config.certificate))
            housekeeping = asyncio.create_task(_keep_house(service))
            await stop.wait()
            log.info("stopping")
            housekeeping.cancel()
            await server.stop(STOP_GRACE_SECONDS)
        finally:
            database.close()


async def _keep_house(service: StorageService) -> None:
    while True:
        try:
            await asyncio.to_thread(service.forget_old)
        except Exception:
            # Old rows cost space and nothing else: the next hour tries again.
            log.exception("housekeeping failed")
        await asyncio.sleep(HOUSEKEEPING_SECONDS)

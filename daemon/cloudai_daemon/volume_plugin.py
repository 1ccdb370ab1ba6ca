"""Docker's volume plugin protocol, version 1, which podman speaks too: JSON posts on a Unix socket.

The engine finds the socket by its file's name (docker) or in containers.conf (podman). An error counts only as HTTP 500
with {"Err": SENTENCE}. See https://docs.docker.com/engine/extend/plugins_volume/.
"""

from __future__ import annotations

import json
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import trio

from cloudai_daemon.json_server import JsonAnswer, serve_json
from cloudai_daemon.service_notifier import ServiceNotifier
from cloudai_daemon.unix_sockets import listen_at, remove_socket
from cloudai_daemon.volume_driver import VolumeDriver
from cloudai_daemon.volume_records import VolumeRecord, VolumeRefused

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"

_STOP_SECONDS_MAX: Final = 10.0
_MEND_SECONDS: Final = 1.0
_ANSWER_SECONDS_MAX: Final = 4.5
"""podman takes a plugin that has not answered after five for dead."""

_WAITING_MAX: Final = 8
"""Requests for one volume that are not done, answered or not."""

Request: TypeAlias = Mapping[str, Any]
Handler: TypeAlias = Callable[[VolumeDriver, Request], dict[str, Any]]


async def serve_volume_plugin(driver: VolumeDriver, socket_path: Path, on_ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT; what is being answered then is answered.

    Raises OSError when the socket cannot be had.
    """
    notifier = ServiceNotifier()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listen_at(socket_path)))
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                plugin = VolumePlugin(driver, nursery)
                nursery.start_soon(serve_json, listener, CONTENT_TYPE, plugin.answer)
                nursery.start_soon(notifier.tell_alive)
                nursery.start_soon(plugin.mend_volumes)
                on_ready()
                notifier.tell_ready()
                await anext(signals)
                notifier.tell_stopping(_STOP_SECONDS_MAX)
                with trio.move_on_after(_STOP_SECONDS_MAX):
                    await plugin.wait_idle()
                nursery.cancel_scope.cancel()
    finally:
        remove_socket(socket_path)


class VolumePlugin:
    """Requests of the protocol become calls of the driver, in worker threads, for one volume one after another."""

    def __init__(self, driver: VolumeDriver, nursery: trio.Nursery) -> None:
        """Calls are tasks of the nursery, and outlive who asked for them."""
        self._driver = driver
        self._nursery = nursery
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._in_flight: Counter[str] = Counter()
        """Requests that are not done, by volume."""
        self._idle = trio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when nothing is being answered."""
        await self._idle.wait()

    async def mend_volumes(self) -> None:
        """Makes what containers are to be given anew, for ever, within seconds of the mount's return."""
        while True:
            await trio.sleep(_MEND_SECONDS)
            for name in await trio.to_thread.run_sync(self._dead_stands):
                async with self._turn(name):
                    await trio.to_thread.run_sync(self._mend, name)

    async def answer(self, method: str, path: str, body: bytes) -> JsonAnswer:
        """See AnswerJson. What takes longer goes on, as it does when cancelled: who asks again waits for it."""
        if method != "POST" or path not in _HANDLERS:
            return JsonAnswer(404, {"Err": f"there is no {path[:80]}"})
        try:
            request = _decode(body)
            name = _text(request, "Name")
        except VolumeRefused as error:
            return JsonAnswer(500, {"Err": str(error)})
        if self._in_flight[name] >= _WAITING_MAX:
            return JsonAnswer(
                500, {"Err": f"{_WAITING_MAX} requests for {name} are not done yet: ask again later"}
            )
        send, receive = trio.open_memory_channel[JsonAnswer](1)
        self._in_flight[name] += 1
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._nursery.start_soon(self._carry_out_in_turn, name, _HANDLERS[path], request, send)
        with receive, trio.move_on_after(_ANSWER_SECONDS_MAX):
            return await receive.receive()
        return JsonAnswer(500, {"Err": f"not done within {_ANSWER_SECONDS_MAX} s; it goes on: ask again"})

    async def _carry_out_in_turn(
        self, name: str, handler: Handler, request: Request, send: trio.MemorySendChannel[JsonAnswer]
    ) -> None:
        try:
            async with self._turn(name):
                answer = await trio.to_thread.run_sync(self._carry_out, handler, request)
            with send, suppress(trio.BrokenResourceError):  # nobody waits for it any more
                send.send_nowait(answer)
        finally:
            self._in_flight[name] -= 1
            if not self._in_flight[name]:
                del self._in_flight[name]
            if not self._in_flight:
                self._idle.set()

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        # Kept in a name: the dictionary holds a turn only while somebody has or awaits it.
        turn = self._turns.setdefault(name, trio.Lock())
        async with turn:
            yield

    def _dead_stands(self) -> list[str]:
        try:
            return self._driver.dead_stands()
        # The plugin must outlive a fault in what nobody asked for.
        except Exception:
            log.exception("volumes could not be looked at")
            return []

    def _mend(self, name: str) -> None:
        try:
            self._driver.mount(name)
        except (VolumeRefused, OSError) as error:
            # The daemon is still away, or the volume is being removed.
            log.debug("not mounted again yet: %s", error)

    def _carry_out(self, handler: Handler, request: Request) -> JsonAnswer:
        try:
            return JsonAnswer(200, {**handler(self._driver, request), "Err": ""})
        except VolumeRefused as error:
            return JsonAnswer(500, {"Err": str(error)})
        except OSError as error:
            return JsonAnswer(500, {"Err": f"{error.filename or 'the plugin'}: {error.strerror}"})
        # The plugin must outlive a fault in one request.
        except Exception:
            log.exception("a request failed")
            return JsonAnswer(500, {"Err": "a fault of the plugin: see its log"})


def _decode(body: bytes) -> Request:
    try:
        request = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:  # the second for what is nested a thousand times
        raise VolumeRefused("the request is no JSON") from error
    if not isinstance(request, dict):
        raise VolumeRefused("the request is no JSON object")
    return request


def _text(request: Request, field: str) -> str:
    value = request.get(field) or ""
    if not isinstance(value, str):
        raise VolumeRefused(f"{field} is no text")
    return value


def _options(request: Request) -> dict[str, str]:
    value = request.get("Opts") or {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise VolumeRefused("Opts is no object of texts")
    return value


def _describe(driver: VolumeDriver, record: VolumeRecord) -> dict[str, Any]:
    return {
        "Name": record.name,
        "Mountpoint": str(driver.path(record.name)),
        "Status": {"run": record.path, "task_id": record.task_id, "seal": str(record.options.seal)},
    }


def _activate(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    return {"Implements": ["VolumeDriver"]}


def _create(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    driver.create(_text(request, "Name"), _options(request))
    return {}


def _remove(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    driver.remove(_text(request, "Name"))
    return {}


def _mount(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    return {"Mountpoint": str(driver.mount(_text(request, "Name")))}


def _path(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    return {"Mountpoint": str(driver.path(_text(request, "Name")))}


def _unmount(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    """Nothing to undo: the run is where it was."""
    return {}


def _get(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    return {"Volume": _describe(driver, driver.find(_text(request, "Name")))}


def _list(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    return {"Volumes": [_describe(driver, record) for record in driver.list_all()]}


def _capabilities(driver: VolumeDriver, request: Request) -> dict[str, Any]:
    """A volume is on this machine: the same name elsewhere is another one."""
    return {"Capabilities": {"Scope": "local"}}


_HANDLERS: Final[Mapping[str, Handler]] = {
    "/Plugin.Activate": _activate,
    "/VolumeDriver.Create": _create,
    "/VolumeDriver.Remove": _remove,
    "/VolumeDriver.Mount": _mount,
    "/VolumeDriver.Path": _path,
    "/VolumeDriver.Unmount": _unmount,
    "/VolumeDriver.Get": _get,
    "/VolumeDriver.List": _list,
    "/VolumeDriver.Capabilities": _capabilities,
}

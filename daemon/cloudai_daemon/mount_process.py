"""The mount daemon: one process behind one mount point. The composition root of the filesystem.

Started by `cloudai mount` as `python -m cloudai_daemon.mount_process` with its configuration on standard
input; answers on standard output with one JSON line, {"ready": true} or {"error": LINE}, and logs to
`daemon.log` in the mount's state directory. SIGTERM and SIGINT end it in order: uploads get a bounded time,
what is left stays staged and is named in the log. A second signal skips the rest of that time.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

import trio

from cloudai_daemon.bound_directories import mend_bound_directories
from cloudai_daemon.control_server import choose_socket_path, serve_control
from cloudai_daemon.exit_codes import ExitCode
from cloudai_daemon.metrics_server import serve_metrics
from cloudai_daemon.mount_config_codec import decode_config
from cloudai_daemon.mount_log import RotatingLog, log_to
from cloudai_daemon.mount_refusals import describe_failure
from cloudai_daemon.mount_report import Report, open_report
from cloudai_daemon.places import make_private_dir, runtime_dir, short_name_of
from cloudai_daemon.process_identity import ProcessIdentity
from cloudai_daemon.registry import RegistryEntry, register, unregister
from cloudai_daemon.service_notifier import ServiceNotifier
from cloudai_fusefs.mount_control import DRAIN_SECONDS_DEFAULT, MountConfig, MountControl, MountStatus
from cloudai_fusefs.version import software_version
from cloudai_model.errors import CloudAIError
from cloudai_model.service_manager import stderr_log

# Named, as this module runs as __main__.
log = logging.getLogger("cloudai_daemon.mount_process")

Failure = TypeVar("Failure", bound=Exception)
ServeMount: TypeAlias = Callable[
    [MountConfig, Callable[[MountControl], None], Callable[[], Awaitable[None]]], Awaitable[None]
]

# Beside the drain: for what is under way in the disk cache and the journal, and the unmount.
_END_SECONDS_MAX: Final = 30.0
# Names in the log of what was left behind; the journal has them all.
_LEFT_NAMES_MAX: Final = 100


class MountDaemon:
    """Runs one mount with its control socket and registry entry, and takes them down in order."""

    def __init__(self, config: MountConfig, serve: ServeMount) -> None:
        self._config = config
        self._serve = serve
        given_seconds = config.drain_seconds
        self._drain_seconds = DRAIN_SECONDS_DEFAULT if given_seconds is None else given_seconds
        self._is_unmounted = False
        self._has_left_something = False
        self._notifier = ServiceNotifier()
        self._serving = trio.CancelScope()
        self._control: MountControl | None = None
        self._failure: OSError | None = None

    async def run(self, on_ready: Callable[[], None]) -> ExitCode:
        """Serves until the mount is gone or a signal ends it; `on_ready` once it can be used.

        NOT_DURABLE: it ended in order, and what it named in the log is for the next mount to send. Raises what the
        serve function raises, OSError when the control socket cannot be made.
        """
        failure: CloudAIError | OSError | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._stop_on_signals)
            nursery.start_soon(self._notifier.tell_alive)

            def take_control(control: MountControl) -> None:
                self._control = control
                nursery.start_soon(self._open_to_requests, control, on_ready)

            with self._serving:
                try:
                    await self._serve(self._config, take_control, self._drain_unmounted)
                except* (CloudAIError, OSError) as group:
                    failure = _first_of(group)
            nursery.cancel_scope.cancel()
        if failure or self._failure:
            raise failure or self._failure or AssertionError
        log.info("unmounted %s", self._config.mount_point)
        return ExitCode.NOT_DURABLE if self._has_left_something else ExitCode.OK

    async def _open_to_requests(self, control: MountControl, on_ready: Callable[[], None]) -> None:
        registry_dir = runtime_dir()
        socket_path = choose_socket_path(
            self._config.state_dir, registry_dir, short_name_of(self._config.mount_point)
        )
        entry = RegistryEntry(
            mount_point=self._config.mount_point,
            source=self._config.source,
            control_socket=socket_path,
            state_dir=self._config.state_dir,
            process=ProcessIdentity.of(os.getpid()),
            read_only=self._config.read_only,
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_control, control, socket_path)
                if self._config.metrics_address:
                    await nursery.start(_serve_metrics, self._config, control)
                register(entry, registry_dir)
                log.info("serving %s at %s", self._config.source, self._config.mount_point)
                # Asks the tree, which this loop answers meanwhile.
                await trio.to_thread.run_sync(
                    mend_bound_directories, self._config.mount_point, self._config.state_dir
                )
                on_ready()
                self._notifier.tell_ready()
        except* OSError as group:
            # Without its control socket a mount could be neither waited for nor unmounted in order; metrics
            # that were asked for are missed by somebody.
            self._failure = _first_of(group)
            self._serving.cancel()
        finally:
            unregister(entry, registry_dir)

    async def _stop_on_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    log.info("%s: unmounting %s", signal.Signals(number).name, self._config.mount_point)
                    if self._serving.cancel_called:
                        continue
                    if self._is_unmounted:
                        log.info("not waiting for uploads")
                        self._end_at_once()
                        continue
                    nursery.start_soon(self._drain_and_stop)
                    await anext(signals)
                    log.info("asked again: not waiting for uploads")
                    self._end_at_once()

    def _end_at_once(self) -> None:
        if self._control is not None:
            self._name_what_is_left(self._control.status())
        self._serving.cancel()

    async def _drain_and_stop(self) -> None:
        """Waits for uploads within the bound, then ends the mount whatever is left."""
        self._notifier.tell_stopping(self._drain_seconds + _END_SECONDS_MAX)
        if self._control is not None:
            self._name_what_is_left(await self._control.drain(self._drain_seconds))
        self._serving.cancel()

    async def _drain_unmounted(self) -> None:
        """The same after an umount(8), which waits for nothing. Who drained before has waited already."""
        self._is_unmounted = True
        self._notifier.tell_stopping(self._drain_seconds + _END_SECONDS_MAX)
        if self._control is not None:
            is_waited_for = not self._control.is_ending
            self._name_what_is_left(await self._control.drain(self._drain_seconds if is_waited_for else 0))

    def _name_what_is_left(self, status: MountStatus) -> None:
        if not status.pending:
            return
        self._has_left_something = True
        log.warning(
            "%d files (%d bytes) are staged in %s and not durable; the next mount sends them",
            len(status.pending),
            status.staged_bytes,
            self._config.state_dir,
        )
        for file in status.pending[:_LEFT_NAMES_MAX]:
            log.warning(
                "%s: %r, %d of %d bytes sent%s",
                file.state,
                file.path,
                file.uploaded_bytes,
                file.size_bytes,
                f": {file.reason}" if file.reason else "",
            )


async def _serve_metrics(
    config: MountConfig, control: MountControl, task_status: trio.TaskStatus[None]
) -> None:
    # Imported here: prometheus_client takes 50 ms, and most mounts are not asked for metrics.
    from cloudai_daemon.metrics import CONTENT_TYPE, MountMetrics

    metrics = MountMetrics(
        version=software_version(), source=config.source, mount_point=str(config.mount_point)
    )

    async def render() -> bytes:
        return await trio.to_thread.run_sync(metrics.render, await control.counters())

    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_metrics, config.metrics_address, render, CONTENT_TYPE)
        log.info("metrics are at %s", address)
        task_status.started()


def _first_of(group: BaseExceptionGroup[Failure]) -> Failure:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def configure_logging(config: MountConfig, *, to_stderr: bool) -> None:
    """Logs to `daemon.log` in the state directory (0600, rotated), and to standard error if asked. Raises OSError."""
    make_private_dir(config.state_dir)
    log_to(RotatingLog(config.state_dir), *([stderr_log()] if to_stderr else []))


def run_daemon(config: MountConfig, serve: ServeMount, report: Report, *, to_stderr: bool) -> int:
    """Runs one mount to its end; the exit status. `report` is called once."""
    os.umask(0o077)
    _raise_descriptor_limit()
    try:
        configure_logging(config, to_stderr=to_stderr)
    except OSError as error:
        report(describe_failure(config, error))
        return ExitCode.MOUNT_FAILED
    is_ready = False

    def on_ready() -> None:
        nonlocal is_ready
        is_ready = True
        report(None)

    try:
        return trio.run(MountDaemon(config, serve).run, on_ready)
    # The root of the process: whatever it was goes to the log with its trace, and to the caller as a line.
    except Exception as error:
        line = describe_failure(config, error)
        if is_ready:
            log.exception("the mount ended: %s", line)
            return ExitCode.FAILED
        if not isinstance(error, CloudAIError | OSError):
            log.exception("could not mount")
        log.error("could not mount: %s", line)  # noqa: TRY400  # expected failures carry no trace
        report(line)
        return ExitCode.MOUNT_FAILED


def _raise_descriptor_limit() -> None:
    # A staged file and a cached chunk in use take one descriptor each; the soft limit is often 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(serve: ServeMount) -> int:
    """The program: configuration on standard input, one report on standard output."""
    os.chdir("/")
    config = decode_config(sys.stdin.buffer.read())
    report = open_report()
    faulthandler.enable()
    return run_daemon(config, serve, report, to_stderr=False)


if __name__ == "__main__":
    from cloudai_fusefs.mount import serve_mount

    sys.exit(main(serve_mount))

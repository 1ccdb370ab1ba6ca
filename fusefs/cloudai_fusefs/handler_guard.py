"""What is around each handler of the kernel's requests: a count, a bound on its wait, and an errno for what it raises.

The one place where errors become errnos, and where an unexpected exception is caught: one that leaves a handler
would end the mount.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from cloudai_fusefs.errnos import errno_of
from cloudai_fusefs.kernel_requests import note_taken
from cloudai_fusefs.request_counters import RequestCounters
from cloudai_model.errors import CloudAIError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def handler(
    call: Callable[Concatenate[Any, P], Awaitable[R]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """Bounds a handler's wait and turns what it raises into an errno."""
    return _guard(call, is_bounded=True)


def prompt_handler(
    call: Callable[Concatenate[Any, P], Awaitable[R]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """As handler, for what waits for nobody or bounds its own waits: without the cost of a bound."""
    return _guard(call, is_bounded=False)


def _guard(
    call: Callable[Concatenate[Any, P], Awaitable[R]], *, is_bounded: bool
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    name = call.__name__

    async def handle(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        note_taken()
        self.counters.requests[name] += 1
        try:
            with self.patience.limited(self.wait_seconds_max if is_bounded else None):
                return await call(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise to_fuse_error(name, error, self.counters) from error

    functools.update_wrapper(handle, call)
    return handle


def to_fuse_error(name: str, error: Exception, counters: RequestCounters) -> pyfuse3.FUSEError:
    """What the kernel is told of it, counted, and a line in the log where that says less."""
    number = errno.EIO
    if isinstance(error, CloudAIError):
        number = errno_of(error)
        if number == errno.EIO:
            log.error("%s: %s", name, error)
    elif isinstance(error, trio.TooSlowError):
        log.error("%s: no answer in time", name)
    elif isinstance(error, OSError):
        log.warning("%s: %s", name, error)
        number = error.errno or errno.EIO
    else:
        log.error("%s failed unexpectedly", name, exc_info=error)
        counters.unexpected[name] += 1
    counters.note_failure(name, number)
    return pyfuse3.FUSEError(number)

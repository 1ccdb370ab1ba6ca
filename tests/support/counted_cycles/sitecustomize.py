"""Makes a mount daemon that searches for cycles when it is asked, and then alone: who connects to
$COUNTED_CYCLES, a Unix socket, gets the number of objects that were found in them since the last time.

Python imports this module by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading


def _answer(listener: socket.socket) -> None:
    while True:
        asker, _ = listener.accept()
        with asker:
            asker.sendall(str(gc.collect()).encode())


if "cloudai_daemon.mount_process" in sys.orig_argv and "COUNTED_CYCLES" in os.environ:
    gc.disable()
    _listener = socket.socket(socket.AF_UNIX)
    _listener.bind(os.environ["COUNTED_CYCLES"])
    _listener.listen()
    threading.Thread(target=_answer, args=[_listener], daemon=True).start()

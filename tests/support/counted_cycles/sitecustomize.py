"""Makes a mount daemon that searches for cycles when it is asked, and then alone: who reads $COUNTED_CYCLES, a fifo,
gets a line with the number of objects that were found in them since the last time.

Python imports this module by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path


def _answer(fifo: Path) -> None:
    while True:
        with fifo.open("w") as reader:  # waits for one
            reader.write(f"{gc.collect()}\n")


if "cloudai_daemon.mount_process" in sys.orig_argv and "COUNTED_CYCLES" in os.environ:
    gc.disable()
    threading.Thread(target=_answer, args=[Path(os.environ["COUNTED_CYCLES"])], daemon=True).start()

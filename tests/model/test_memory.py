"""What keep_freed_memory is for: blocks of some MiB, again and again, are not new pages each time."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from cloudai_model.memory import keep_freed_memory
{call}
def faults_of(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [b"x" * (4 << 20) for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of(2)
print(faults_of(10))
"""


def page_faults(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_blocks_of_some_mib_are_used_again() -> None:
    assert page_faults("keep_freed_memory()") * 10 < page_faults("")

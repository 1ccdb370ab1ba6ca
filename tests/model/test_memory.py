"""What the process is told of its memory once: blocks of some MiB are used again, cycles are seldom searched for."""

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


CYCLES = """
import gc
from cloudai_model.memory import collect_cycles_seldom, freeze_loaded_objects
{call}
searches = []
gc.callbacks.append(lambda phase, about: searches.append(about["generation"]))
kept = [[] for _ in range(40_000)]
print(len(searches), len(gc.get_objects()) - len(kept) > 5_000)
kept[0].append(kept)
del kept
assert gc.collect() >= 40_000
"""


def searches_and_whether_all_is_looked_at(call: str) -> tuple[int, bool]:
    done = subprocess.run(
        [sys.executable, "-c", CYCLES.format(call=call)], capture_output=True, text=True, check=True
    )
    count, looks_at_all = done.stdout.split()
    return int(count), looks_at_all == "True"


def test_forty_thousand_objects_more_are_no_reason_to_search_for_cycles() -> None:
    assert searches_and_whether_all_is_looked_at("")[0] > 100
    assert searches_and_whether_all_is_looked_at("collect_cycles_seldom()")[0] == 0


def test_what_is_loaded_is_not_searched_and_later_cycles_are_found() -> None:
    assert searches_and_whether_all_is_looked_at("")[1]
    assert not searches_and_whether_all_is_looked_at("freeze_loaded_objects()")[1]

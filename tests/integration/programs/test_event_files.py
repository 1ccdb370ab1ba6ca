"""TensorBoard: a task writes event files on one mount, TensorBoard's reader follows them on another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from support.mount_process import wait_until
from support.tree_snapshot import AtMaster


def add_scalar(writer: EventFileWriter, step: int) -> None:
    value = Summary.Value(tag="loss", simple_value=1 / (step + 1))
    writer.add_event(Event(step=step, wall_time=step, summary=Summary(value=[value])))


def scalars(events: EventAccumulator) -> list[tuple[int, float]]:
    if "loss" not in events.Tags()["scalars"]:
        return []
    return [(scalar.step, scalar.value) for scalar in events.Scalars("loss")]


def expected(count: int) -> list[tuple[int, float]]:
    return [(step, float(np.float32(1 / (step + 1)))) for step in range(count)]


def test_event_file_is_followed_on_another_mount_while_it_grows(
    run: Path, in_second_mount: Callable[[Path], Path], at_master: AtMaster, tmp_path: Path
) -> None:
    """W8. Who reads a file that grows elsewhere gets the bytes that were written, and none before they were."""
    writer = EventFileWriter(str(run / "logs"))
    elsewhere = in_second_mount(run) / "logs"
    wait_until(elsewhere.exists, "the logs in the other mount")
    # Everything is kept: the reader's own choice of a few events would hide a lost one.
    reader = EventAccumulator(str(elsewhere), size_guidance={"scalars": 0, "tensors": 0})
    count = 0
    for more in (1, 50, 3, 400, 1):
        for step in range(count, count + more):
            add_scalar(writer, step)
        writer.flush()
        count += more

        def has_come(wanted: int = count) -> bool:
            found = scalars(reader.Reload())
            # None is lost, doubled or wrong, how far ever it has come.
            assert found == expected(len(found))
            return len(found) == wanted

        wait_until(has_come, f"{count} events in the other mount")
    writer.close()

    shutil.copytree(at_master() / "logs", tmp_path / "copy")
    copy = EventAccumulator(str(tmp_path / "copy"), size_guidance={"scalars": 0, "tensors": 0})
    assert scalars(copy.Reload()) == expected(count)


def test_directory_of_runs_is_followed_on_another_mount_while_files_come(
    run: Path, in_second_mount: Callable[[Path], Path], at_master: AtMaster
) -> None:
    """As the server does: one directory of each experiment, and a further file after a restart of the task."""
    elsewhere = in_second_mount(run)
    wait_until(elsewhere.exists, "the run in the other mount")
    reader = EventMultiplexer(size_guidance={"scalars": 0, "tensors": 0})

    def steps(name: str) -> int:
        reader.AddRunsFromDirectory(str(elsewhere))
        reader.Reload()
        tags = reader.Runs().get(name, {}).get("tensors", [])
        return len(reader.Tensors(name, "loss")) if "loss" in tags else 0

    for name in ("train", "eval"):
        first = EventFileWriter(str(run / name), filename_suffix=".0")
        for step in range(20):
            add_scalar(first, step)
        first.flush()
        wait_until(lambda: steps(name) == 20, f"20 events of {name}")  # noqa: B023 - it is called here alone
        first.close()
        second = EventFileWriter(str(run / name), filename_suffix=".1")
        for step in range(20, 30):
            add_scalar(second, step)
        second.close()
        wait_until(lambda: steps(name) == 30, f"30 events of {name}")  # noqa: B023

    assert {path.name for path in at_master().iterdir()} == {"train", "eval"}

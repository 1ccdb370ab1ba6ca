"""Files that are mapped: how much moves when they are read here and there, as safetensors does; what is written."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

from cloudai_model.limits import CHUNK_BYTES_MAX, MIB
from support.mount_process import RUN, MakeMount, run_in

TENSOR_COUNT = 20
TENSOR_BYTES = 6 * MIB
READ = (3, 9, 15)
PAGE = 4096
PART_BYTES = 16 * PAGE


def touch_tensors(path: Path, content: bytes) -> None:
    """Looks at every page of the tensors and compares, without a call to the system."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for number in READ:
            for place in range(number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES, PAGE):
                assert mapped[place] == content[place]


def test_tensors_of_a_mapped_file_bring_little_beside_them(make_mount: MakeMount) -> None:
    content = random.Random(6).randbytes(TENSOR_COUNT * TENSOR_BYTES)
    writer = make_mount()
    (writer.make_run(RUN) / "model.safetensors").write_bytes(content)
    writer.wait_durable()
    reader = make_mount("reader")

    touch_tensors(run_in(reader) / "model.safetensors", content)

    # Of each the chunks it lies in and those of what the kernel asks for around a fault (as root, 2 MiB before and
    # 4 MiB behind), and one ahead. With a window that doubles it was more than 64 MiB.
    assert reader.status()["fetched_bytes"] <= len(READ) * 5 * CHUNK_BYTES_MAX


def test_mapped_bytes_survive_the_daemon_once_they_are_synced(make_mount: MakeMount) -> None:
    """P6. What was written through a shared mapping is read by everybody at once, and is as safe as a `write()` once
    `msync()` has returned.
    """
    mount = make_mount()
    path = mount.make_run(RUN) / "file"
    path.write_bytes(bytes(16 * MIB))
    mount.wait_durable()
    content = random.Random(7).randbytes(16 * MIB)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        # Every other part of it, so that the kernel sends many writes at once, each of a place of its own.
        for start in range(0, len(content), 2 * PART_BYTES):
            mapped[start : start + PART_BYTES] = content[start : start + PART_BYTES]
        mapped.flush()
        mount.kill()
    mount.start()

    found = path.read_bytes()

    for start in range(0, len(content), 2 * PART_BYTES):
        assert found[start : start + PART_BYTES] == content[start : start + PART_BYTES]
        assert not any(found[start + PART_BYTES : start + 2 * PART_BYTES])

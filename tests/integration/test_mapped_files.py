"""Files that are mapped, as safetensors does, and read here and there: how much moves."""

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

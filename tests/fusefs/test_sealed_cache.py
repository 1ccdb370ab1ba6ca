"""Sealed trees and manifests on a real disk."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from cloudai_fusefs.cache_file import scope_name
from cloudai_fusefs.cache_sweep import evict_oldest_runs, stored_bytes_of
from cloudai_fusefs.sealed_cache import SealedCache
from cloudai_model.chunks import Chunk, Manifest, digest_of
from cloudai_model.errors import InvalidRequest
from cloudai_proto.storage.v1 import names_pb2, types_pb2
from support.other_kinds import OTHER_KINDS, put_in_place

PAGES = [
    names_pb2.ListTreeResponse(
        root=types_pb2.Node(node_id=1 << 40, kind=types_pb2.NODE_KIND_DIRECTORY),
        edges=[
            types_pb2.Edge(parent_node_id=1 << 40, name=b"odd\n\xff", node=types_pb2.Node(node_id=7 << 40))
        ],
        next_page_token="2",
        revision=12,
        sealed=True,
    ),
    names_pb2.ListTreeResponse(revision=12, sealed=True),
]
MANIFEST = Manifest([Chunk(4096, digest_of(b"one")), Chunk(17, digest_of(b"two"))])


ROOMY = 1 << 30
SCOPE = "master.example:7443"


def open_cache(
    cache_dir: Path, nursery: trio.Nursery, *, scope: str = SCOPE, bytes_max: int = ROOMY
) -> SealedCache:
    return SealedCache(cache_dir, scope=scope, bytes_max=bytes_max, nursery=nursery)


@pytest.fixture
def cache(tmp_path: Path, nursery: trio.Nursery) -> SealedCache:
    return open_cache(tmp_path, nursery)


def note_used_days_ago(cache_dir: Path, task_id: str, days: int) -> None:
    at = time.time() - 86400 * days
    os.utime(cache_dir / "sealed" / scope_name(SCOPE) / task_id, (at, at))


async def fill_cache(cache_dir: Path, run_count: int) -> int:
    """Runs 1..run_count with a tree and a manifest, each used a day before the next one; returns what one takes."""
    async with trio.open_nursery() as nursery:
        cache = open_cache(cache_dir, nursery)
        for number in range(1, run_count + 1):
            await cache.store_tree(f"run-{number}", PAGES)
            await cache.store_manifest(f"run-{number}", 5, 1, MANIFEST)
            note_used_days_ago(cache_dir, f"run-{number}", run_count - number + 1)
    run_dir = next(cache_dir.glob("sealed/*/run-1"))
    return sum(stored_bytes_of(path.stat()) for path in (run_dir, *run_dir.iterdir()))


def kept_runs(cache_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in cache_dir.glob("sealed/*/*/tree"))


def only_file(directory: Path) -> Path:
    (path,) = [path for path in (directory / "sealed").rglob("*") if path.is_file()]
    return path


async def test_tree_comes_back_page_by_page(cache: SealedCache) -> None:
    await cache.store_tree("run-1", PAGES)
    assert await cache.load_tree("run-1") == PAGES


async def test_manifest_comes_back_for_its_generation_alone(cache: SealedCache) -> None:
    await cache.store_manifest("run-1", 5 << 40, 3, MANIFEST)
    assert await cache.load_manifest("run-1", 5 << 40, 3) == MANIFEST
    assert await cache.load_manifest("run-1", 5 << 40, 4) is None


async def test_manifest_of_the_empty_file_comes_back(cache: SealedCache) -> None:
    await cache.store_manifest("run-1", 5 << 40, 1, Manifest())
    assert await cache.load_manifest("run-1", 5 << 40, 1) == Manifest()


async def test_what_was_never_stored_is_none(cache: SealedCache) -> None:
    assert await cache.load_tree("run-1") is None


@pytest.mark.parametrize("kind", OTHER_KINDS)
async def test_what_is_no_file_in_the_place_of_a_tree_is_none(
    cache: SealedCache, tmp_path: Path, kind: str
) -> None:
    await cache.store_tree("run-1", PAGES)
    put_in_place(only_file(tmp_path), kind)
    assert not await cache.has_tree("run-1")
    assert await cache.load_tree("run-1") is None
    await cache.store_tree("run-1", PAGES)
    assert (await cache.load_tree("run-1") == PAGES) == (kind != "directory")


async def test_same_task_id_at_another_master_is_another_run(
    cache: SealedCache, tmp_path: Path, nursery: trio.Nursery
) -> None:
    await cache.store_tree("run-1", PAGES)
    other = open_cache(tmp_path, nursery, scope="other.example:7443")
    assert await other.load_tree("run-1") is None


@pytest.mark.parametrize("victim", ["manifest-5-1", "manifest-6-2", "../run-2/tree"])
async def test_another_files_content_under_this_name_is_dropped(
    cache: SealedCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    """As a power cut can leave it, or a hand."""
    await cache.store_manifest("run-1", 5, 2, MANIFEST)
    await cache.store_tree("run-1", PAGES)
    await cache.store_tree("run-2", PAGES)
    manifest, tree = (next(tmp_path.rglob(f"run-1/{name}")) for name in ("manifest-5-2", "tree"))
    source = tree if victim.endswith("tree") else manifest
    (manifest.parent / victim).write_bytes(source.read_bytes())

    assert await cache.load_manifest("run-1", 5, 1) is None
    assert await cache.load_manifest("run-1", 6, 2) is None
    assert (await cache.load_tree("run-2") is None) is victim.endswith("tree")
    assert await cache.load_manifest("run-1", 5, 2) == MANIFEST
    assert len(caplog.records) == 1


async def test_tree_of_an_open_run_is_refused(cache: SealedCache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sealed"):
        await cache.store_tree("run-1", [PAGES[0], names_pb2.ListTreeResponse(sealed=False)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size_bytes", [0, 10, 40])
async def test_short_file_is_dropped_and_logged(
    cache: SealedCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, size_bytes: int
) -> None:
    await cache.store_tree("run-1", PAGES)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:size_bytes])

    assert await cache.load_tree("run-1") is None

    assert not path.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_file_with_a_changed_bit_is_dropped(
    cache: SealedCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await cache.store_manifest("run-1", 5 << 40, 1, MANIFEST)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    assert await cache.load_manifest("run-1", 5 << 40, 1) is None

    assert not path.exists()
    assert len(caplog.records) == 1


async def test_intact_file_that_is_no_manifest_is_dropped(
    cache: SealedCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await cache.store_manifest("run-1", 5 << 40, 1, MANIFEST)
    path = only_file(tmp_path)
    foreign = types_pb2.Manifest(chunks=[types_pb2.Chunk(length_bytes=0)]).SerializeToString()
    path.write_bytes(digest_of(foreign) + foreign)

    assert await cache.load_manifest("run-1", 5 << 40, 1) is None

    assert not path.exists()
    assert len(caplog.records) == 1


async def test_forgotten_run_leaves_nothing(cache: SealedCache, tmp_path: Path) -> None:
    await cache.store_tree("run-1", PAGES)
    await cache.store_manifest("run-1", 5 << 40, 1, MANIFEST)
    await cache.forget_run("run-1")
    await cache.forget_run("run-1")
    assert [path for path in (tmp_path / "sealed").rglob("*") if path.is_file()] == []


async def test_runs_used_longest_ago_go_first_with_all_that_is_kept_of_them(tmp_path: Path) -> None:
    run_bytes = await fill_cache(tmp_path, 6)

    async with trio.open_nursery() as nursery:
        open_cache(tmp_path, nursery, bytes_max=int(3.5 * run_bytes))

    assert kept_runs(tmp_path) == ["run-4", "run-5", "run-6"]
    assert len(list(tmp_path.glob("sealed/*/*"))) == 3


@pytest.mark.parametrize("use", ["tree", "manifest"])
async def test_run_that_is_used_stays(tmp_path: Path, use: str) -> None:
    run_bytes = await fill_cache(tmp_path, 6)
    async with trio.open_nursery() as nursery:
        cache = open_cache(tmp_path, nursery)
        if use == "tree":
            assert await cache.load_tree("run-1") == PAGES
        else:
            assert await cache.load_manifest("run-1", 5, 1) == MANIFEST

    async with trio.open_nursery() as nursery:
        open_cache(tmp_path, nursery, bytes_max=int(3.5 * run_bytes))

    assert kept_runs(tmp_path) == ["run-1", "run-5", "run-6"]


async def test_what_is_stored_keeps_the_cache_within_its_limit(tmp_path: Path) -> None:
    run_bytes = await fill_cache(tmp_path, 6)
    async with trio.open_nursery() as nursery:
        cache = open_cache(tmp_path, nursery, bytes_max=7 * run_bytes)
        for number in range(7, 30):
            await cache.store_tree(f"run-{number}", PAGES)
            await cache.store_manifest(f"run-{number}", 5, 1, MANIFEST)

    assert 1 <= len(kept_runs(tmp_path)) <= 7
    assert not {f"run-{number}" for number in range(1, 7)} & set(kept_runs(tmp_path))


async def test_masters_that_share_a_cache_share_its_limit(tmp_path: Path) -> None:
    run_bytes = await fill_cache(tmp_path, 3)
    async with trio.open_nursery() as nursery:
        other = open_cache(tmp_path, nursery, scope="other.example:7443")
        await other.store_tree("run-10", PAGES)

    async with trio.open_nursery() as nursery:
        open_cache(tmp_path, nursery, bytes_max=int(1.5 * run_bytes))

    assert kept_runs(tmp_path) == ["run-10"]


async def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path, nursery: trio.Nursery) -> None:
    cache = open_cache(tmp_path, nursery, bytes_max=10)
    await cache.store_tree("run-1", PAGES)
    assert kept_runs(tmp_path) == []


async def test_run_that_has_gone_is_kept_anew_when_it_is_used_again(tmp_path: Path) -> None:
    await fill_cache(tmp_path, 1)
    async with trio.open_nursery() as nursery:
        cache = open_cache(tmp_path, nursery)
        evict_oldest_runs_now = partial(evict_oldest_runs, tmp_path / "sealed", 1)
        assert await trio.to_thread.run_sync(evict_oldest_runs_now) == 0
        assert await cache.load_tree("run-1") is None
        assert await cache.load_manifest("run-1", 5, 1) is None
        await cache.store_manifest("run-1", 5, 1, MANIFEST)
        assert await cache.load_manifest("run-1", 5, 1) == MANIFEST


@pytest.mark.parametrize("task_id", ["", "..", "a/b", "../../elsewhere"])
async def test_task_id_that_would_leave_the_directory_is_refused(cache: SealedCache, task_id: str) -> None:
    with pytest.raises(InvalidRequest):
        await cache.load_tree(task_id)


async def test_directory_that_cannot_be_used_is_logged_once(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sealed").write_text("in the way")
    cache = open_cache(tmp_path, nursery)
    await cache.store_tree("run-1", PAGES)
    assert await cache.load_tree("run-1") is None
    assert len(caplog.records) == 1


async def test_files_are_the_owners_alone(cache: SealedCache, tmp_path: Path) -> None:
    await cache.store_tree("run-1", PAGES)
    path = only_file(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {parent.stat().st_mode & 0o777 for parent in list(path.parents)[:3]} == {0o700}

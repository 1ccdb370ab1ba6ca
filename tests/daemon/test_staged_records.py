"""The records of the CSI driver's volumes, which are files that it is not alone with."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cloudai_daemon.csi.staged_records import StagedRecords, StagedVolume
from cloudai_model.boots import current_boot_id

VOLUME = StagedVolume(
    volume_id="0123",
    run="user-123/training/2026-11-20_15-04-05",
    staging=Path("/staging/0123"),
    is_read_only=False,
    flags=("uid=1000",),
    boot_id=current_boot_id(),
    published={Path("/pods/first"): True},
)


@pytest.fixture
def records(tmp_path: Path) -> StagedRecords:
    return StagedRecords(tmp_path / "records", tmp_path / "tokens")


def file_of(records: StagedRecords) -> Path:
    return records.mount_state_dir(VOLUME.volume_id).with_name("volume.json")


def test_record_is_found_as_it_was_saved_last(records: StagedRecords) -> None:
    for record in (VOLUME, replace(VOLUME, published={}), VOLUME):
        records.save(record)

        assert records.find(VOLUME.volume_id) == record
        assert records.list_all() == [record]


def test_record_that_somebody_else_has_written_is_read_again(records: StagedRecords) -> None:
    records.save(VOLUME)
    assert records.find(VOLUME.volume_id) == VOLUME

    file_of(records).write_text(file_of(records).read_text().replace(current_boot_id(), "an earlier one"))

    found = records.find(VOLUME.volume_id)
    assert found == replace(VOLUME, boot_id="an earlier one")
    assert not found.is_of_this_boot


def test_record_that_was_damaged_after_it_was_read_is_none(records: StagedRecords) -> None:
    records.save(VOLUME)
    assert records.find(VOLUME.volume_id) == VOLUME

    file_of(records).write_text("{")

    assert records.find(VOLUME.volume_id) is None
    assert records.list_all() == []


def test_record_that_is_forgotten_is_none(records: StagedRecords) -> None:
    records.save(VOLUME)
    records.save_token(VOLUME.volume_id, "e30.e30.e30")
    assert records.list_all() == [VOLUME]

    records.forget(VOLUME.volume_id)

    assert records.find(VOLUME.volume_id) is None
    assert records.list_all() == []
    assert records.find_token(VOLUME.volume_id) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.forget(VOLUME.volume_id),
        # What a look at its file's inode, time and size may not tell from the one before.
        lambda records: records.save(replace(VOLUME, published={})),
    ],
    ids=("forgotten", "saved again"),
)
def test_nothing_is_kept_in_memory_of_a_record_that_is_gone(
    records: StagedRecords, change: Callable[[StagedRecords], None]
) -> None:
    records.save(VOLUME)
    found = records.find(VOLUME.volume_id)
    assert found is not None
    kept = weakref.ref(found)
    del found

    change(records)

    gc.collect()
    assert kept() is None


def test_damage_is_said_again_of_a_volume_that_was_forgotten_meanwhile(
    records: StagedRecords, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        file_of(records).parent.mkdir()
        file_of(records).write_text("{")
        for _ in range(2):
            assert records.find(VOLUME.volume_id) is None
        records.forget(VOLUME.volume_id)

    said = [record.message for record in caplog.records]
    assert said == 2 * [
        f"{file_of(records)} is damaged: what is beside it stays there until it is staged again"
    ]


def test_what_else_is_beside_the_records_is_no_volume(records: StagedRecords, tmp_path: Path) -> None:
    records.save(VOLUME)
    (tmp_path / "records" / "a file").touch()
    (tmp_path / "records" / "a folder").mkdir()

    assert records.list_all() == [VOLUME]

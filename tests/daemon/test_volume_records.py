"""The files that volumes are noted in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudai_daemon.volume_records import (
    SealWhen,
    VolumeOptions,
    VolumeRecord,
    VolumeRecords,
    VolumeRefused,
    check_volume_name,
    parse_volume_options,
)

RECORD = VolumeRecord(
    name="results",
    mount_point=Path("/mnt/cloudai"),
    options=VolumeOptions(task="training", seal=SealWhen.ON_REMOVE, uid="1000:100", read_only=True),
    task_id="id-1",
    path="user-123/training/2026-11-20_15-04-05",
)


def test_record_is_read_as_it_was_saved_until_it_is_removed(tmp_path: Path) -> None:
    VolumeRecords(tmp_path).save(RECORD)

    records = VolumeRecords(tmp_path)
    assert records.find("results") == RECORD
    assert records.list_all() == [RECORD]
    for _ in range(2):
        records.remove("results")
    assert records.find("results") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b'{"name": "damaged"', b"\xff\xfe", b'"text"', b"null", b"3", b"[]", b""])
def test_damaged_record_is_named_and_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    records = VolumeRecords(tmp_path)
    records.save(RECORD)
    (tmp_path / "damaged.json").write_bytes(damage)

    with pytest.raises(VolumeRefused, match=r"damaged\.json is damaged: remove it"):
        records.find("damaged")

    assert records.list_all() == [RECORD]
    assert "damaged.json is damaged" in caplog.text


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-x", "x" * 201, "ä", "x\n"])
def test_name_that_would_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(VolumeRefused, match="is no name of a volume"):
        check_volume_name(name)


def test_options_are_what_docker_and_podman_send() -> None:
    given = {"task": "training", "run": "2026-11-20_15-04-05", "uid": "1000", "ro": ""}

    options = parse_volume_options(given)

    assert options == VolumeOptions(
        task="training",
        run="2026-11-20_15-04-05",
        seal=SealWhen.NEVER,
        uid="1000",
        read_only=True,
    )
    assert parse_volume_options({"task": "training", "seal": "on-remove"}).seal is SealWhen.ON_REMOVE
    assert options.user is not None
    assert (options.user.uid, options.user.gid) == (1000, 1000)
    assert parse_volume_options({"task": "training", "uid": "root"}).user is None


def test_volume_that_is_only_read_seals_nothing() -> None:
    with pytest.raises(VolumeRefused, match="exclude each other"):
        parse_volume_options({"task": "training", "seal": "on-remove", "ro": ""})

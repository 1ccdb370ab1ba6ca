"""Arrays and tables in a run, by the libraries that tasks write them with: what is read back is what was meant."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import zarr
from safetensors.numpy import load_file, save_file

from cloudai_model.limits import MIB
from support.mount_process import MountProcess
from support.tree_snapshot import AtMaster

Weights = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def weights(seed: int, *shape: int) -> Weights:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_memmap_changes_a_published_array_in_place(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    expected = weights(1, 3000, 1000)
    np.save(run / "weights.npy", expected)
    shared_mount.wait_durable(run)

    mapped = np.load(run / "weights.npy", mmap_mode="r+")
    mapped[::500] = 7
    mapped[1234, 100:200] += 1
    mapped.flush()
    del mapped

    expected = expected.copy()
    expected[::500] = 7
    expected[1234, 100:200] += 1
    assert np.array_equal(np.load(at_master() / "weights.npy"), expected)


def test_memmap_makes_an_array_larger_than_what_is_written(run: Path, at_master: AtMaster) -> None:
    mapped = np.memmap(run / "raw", dtype=np.float32, mode="w+", shape=(3, MIB))
    mapped[2, -1000:] = 3
    mapped.flush()
    del mapped
    again = np.memmap(run / "raw", dtype=np.float32, mode="r+", shape=(3, MIB))
    again[0, :1000] = 1
    del again  # nothing flushes: the kernel writes it when the mapping ends

    expected = np.zeros((3, MIB), dtype=np.float32)
    expected[2, -1000:] = 3
    expected[0, :1000] = 1
    assert np.array_equal(np.fromfile(at_master() / "raw", dtype=np.float32).reshape(3, MIB), expected)


def test_compressed_arrays_are_read_one_by_one(run: Path, at_master: AtMaster) -> None:
    arrays = {name: weights(seed, 300, 100) for seed, name in enumerate(("first", "second"))}
    np.savez_compressed(run / "arrays.npz", first=arrays["first"], second=arrays["second"])

    with np.load(at_master() / "arrays.npz") as found:
        assert sorted(found) == ["first", "second"]
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_hdf5_file_is_created_and_appended(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    rows = weights(2, 400, 1000)
    with h5py.File(run / "history.h5", "w") as file:
        growing = file.create_dataset(
            "rows", data=rows[:100], maxshape=(None, 1000), chunks=(50, 1000), compression="gzip"
        )
        growing.attrs["epoch"] = 1
        file.create_group("model").create_dataset("bias", data=rows[0])
    shared_mount.wait_durable(run)

    for epoch, end in enumerate((200, 300, 400), start=2):
        with h5py.File(run / "history.h5", "a") as file:
            file["rows"].resize(end, axis=0)
            file["rows"][end - 100 :] = rows[end - 100 : end]
            file["rows"].attrs["epoch"] = epoch
            file["model/bias"][...] = rows[end - 1]
            file.flush()

    with h5py.File(at_master() / "history.h5", "r") as file:
        assert np.array_equal(file["rows"][...], rows)
        assert file["rows"].attrs["epoch"] == 4
        assert np.array_equal(file["model/bias"][...], rows[399])


def test_hdf5_file_is_read_while_it_is_written(run: Path, at_master: AtMaster) -> None:
    """Single writer, several readers: they share the file without locks and read what is flushed."""
    rows = weights(3, 30, 100)
    with h5py.File(run / "live.h5", "w", libver="latest") as file:
        growing = file.create_dataset("rows", shape=(0, 100), maxshape=(None, 100), dtype="f4")
        file.swmr_mode = True
        with h5py.File(run / "live.h5", "r", libver="latest", swmr=True) as reader:
            for end in (10, 20, 30):
                growing.resize(end, axis=0)
                growing[end - 10 :] = rows[end - 10 : end]
                growing.flush()
                reader["rows"].refresh()
                assert np.array_equal(reader["rows"][...], rows[:end])

    with h5py.File(at_master() / "live.h5", "r") as file:
        assert np.array_equal(file["rows"][...], rows)


def test_zarr_group_is_created_changed_and_appended(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    """A file for each chunk of an array, each written beside its place and renamed."""
    rows = weights(4, 300, 200)
    group = zarr.open_group(run / "store.zarr", mode="w")
    array = group.create_array("rows", shape=(200, 200), chunks=(100, 100), dtype="f4")
    array[:] = rows[:200]
    group.attrs["epoch"] = 1
    shared_mount.wait_durable(run)

    array = zarr.open_array(run / "store.zarr" / "rows", mode="r+")
    array[150:160, 50:150] = 7
    array.append(rows[200:])
    zarr.open_group(run / "store.zarr", mode="r+").attrs["epoch"] = 2

    expected = rows.copy()
    expected[150:160, 50:150] = 7
    elsewhere = at_master() / "store.zarr"
    assert np.array_equal(np.asarray(zarr.open_array(elsewhere / "rows", mode="r")[:]), expected)
    assert zarr.open_group(elsewhere, mode="r").attrs["epoch"] == 2


def test_safetensors_are_replaced_and_read(
    run: Path, shared_mount: MountProcess, at_master: AtMaster
) -> None:
    save_file({"frozen": weights(5, 1000, 1100), "head": weights(6, 10, 10)}, run / "model.safetensors")
    shared_mount.wait_durable(run)
    expected = {"frozen": weights(5, 1000, 1100), "head": weights(7, 10, 10)}

    save_file(expected, run / "model.safetensors", metadata={"epoch": "2"})

    found = load_file(at_master() / "model.safetensors")
    assert sorted(found) == ["frozen", "head"]
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_parquet_is_written_group_by_group_and_as_a_dataset(run: Path, at_master: AtMaster) -> None:
    values = weights(8, 40_000)
    table = pa.table({"step": range(40_000), "loss": values, "run": ["a", "b"] * 20_000})
    with pq.ParquetWriter(run / "metrics.parquet", table.schema) as writer:
        for start in range(0, 40_000, 10_000):
            writer.write_table(table.slice(start, 10_000))
    pa.dataset.write_dataset(
        table, run / "dataset", format="parquet", partitioning=["run"], partitioning_flavor="hive"
    )

    elsewhere = at_master()

    with pq.ParquetFile(elsewhere / "metrics.parquet", memory_map=True) as file:
        assert file.num_row_groups == 4
        assert file.read().equals(table)
    found = pa.dataset.dataset(elsewhere / "dataset", partitioning="hive").to_table()
    assert found.sort_by("step")["loss"].to_numpy().tobytes() == values.tobytes()


def test_zip_archive_is_appended(run: Path, shared_mount: MountProcess, at_master: AtMaster) -> None:
    """A new entry overwrites the list of entries at the archive's end."""
    entries = {f"epoch-{number}.bin": weights(number, 500_000).tobytes() for number in range(4)}
    for name, content in entries.items():
        with zipfile.ZipFile(run / "epochs.zip", "a") as archive:
            archive.writestr(name, content)
        shared_mount.wait_durable(run)

    with zipfile.ZipFile(at_master() / "epochs.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == entries

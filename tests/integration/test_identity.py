"""Tokens and TLS on real mounts: who sees what, and what a mount says of a token that is none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from support.master_process import MasterProcess
from support.mount_process import RUN, MountProcess, run_in, wait_until


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, and a master's certificate and key for `localhost`."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    paths = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(str(paths[0]))
    certificate.cert_chain_pems[0].write_to_path(str(paths[1]))
    certificate.private_key_pem.write_to_path(str(paths[2]))
    return paths


@pytest.fixture
def tls_master(tmp_path: Path, certificates: tuple[Path, Path, Path]) -> Iterator[MasterProcess]:
    _, certificate, key = certificates
    master = MasterProcess(tmp_path / "master", "--tls-cert", str(certificate), "--tls-key", str(key))
    master.start()
    yield master
    master.kill()


def source_of(master: MasterProcess) -> str:
    """By the name that is in the certificate."""
    return f"localhost:{master.address.rpartition(':')[2]}"


def test_mount_over_tls_serves_and_stores(
    tmp_path: Path,
    tls_master: MasterProcess,
    certificates: tuple[Path, Path, Path],
    mounts: list[MountProcess],
) -> None:
    options = f"ca={certificates[0]},timeo=20"
    token = tls_master.make_token("user-123")
    mount = MountProcess(tmp_path / "mount", source_of(tls_master), token, options=options)
    mounts.append(mount)
    mount.start()
    run = mount.make_run(RUN)

    (run / "file").write_bytes(b"content")
    mount.wait_durable()

    other = MountProcess(tmp_path / "other", source_of(tls_master), token, options=options)
    mounts.append(other)
    other.start()
    assert (other.mount_point / "user-123" / "training" / RUN / "file").read_bytes() == b"content"


def test_master_with_a_certificate_of_somebody_else_is_refused(
    tmp_path: Path, tls_master: MasterProcess, mounts: list[MountProcess]
) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    mount = MountProcess(
        tmp_path / "mount",
        source_of(tls_master),
        tls_master.make_token("user-123"),
        options=f"ca={stranger}",
    )
    mounts.append(mount)

    result = mount.mount_command()

    assert result.returncode == 32
    assert len(result.stderr.strip().splitlines()) == 1


def test_token_for_one_run_mounts_that_run_alone(
    tmp_path: Path, master: MasterProcess, mounts: list[MountProcess]
) -> None:
    whole = MountProcess(tmp_path / "whole", master.address, master.make_token("user-123"))
    mounts.append(whole)
    whole.start()
    run = whole.make_run(RUN)
    whole.make_run("2026-11-20_16-00-00")
    whole.make_run("2026-11-20_17-00-00", task="other")
    listing = whole.cloudai("ls", "--json", str(run))
    assert listing.returncode == 0, listing.stderr
    task_id = listing.stdout.split('"task_id": "')[1].split('"')[0]
    narrow = MountProcess(tmp_path / "narrow", master.address, master.make_token("user-123", task_id=task_id))
    mounts.append(narrow)
    narrow.start()

    user = narrow.mount_point / "user-123"

    assert os.listdir(user) == ["training"]
    assert sorted(os.listdir(user / "training")) == [RUN, "latest"]
    (user / "training" / RUN / "file").write_bytes(b"from the task")
    narrow.wait_durable()
    wait_until(lambda: (run / "file").exists(), "the file on the other mount")
    with pytest.raises(PermissionError):
        (user / "training" / "2026-11-20_18-00-00").mkdir()


def is_failed(status: dict[str, Any]) -> bool:
    return bool(status["file"]["state"] == "failed")


def test_revoked_token_ends_uploads_and_a_new_one_in_the_file_goes_on(
    tmp_path: Path, master: MasterProcess, mounts: list[MountProcess]
) -> None:
    mount = MountProcess(tmp_path / "mount", master.address, master.make_token("user-123"))
    mounts.append(mount)
    mount.start()
    run = mount.make_run(RUN)
    (run / "before").write_bytes(b"1")
    mount.wait_durable()
    (token_line,) = [line for line in master.run("token", "list").stdout.splitlines() if "user-123" in line]
    master.run("token", "revoke", token_line.split()[0])

    def is_refused() -> bool:
        # For up to a second the master goes by what it knew of the token.
        (run / f"after-{time.monotonic_ns()}").write_bytes(b"2")
        return any("not authenticated" in entry["reason"] for entry in mount.status()["pending"])

    wait_until(is_refused, "the refusal in the status")
    (run / "kept").write_bytes(b"not lost")
    wait_until(lambda: is_failed(mount.status(run / "kept")), "the refusal of another file")
    assert mount.log_text().count("uploads are refused") == 1
    mount.token_file.write_text(master.make_token("user-123"))
    mount.wait_durable()

    assert mount.status()["pending_count"] == 0
    other = MountProcess(tmp_path / "other", master.address, mount.token_file.read_text())
    mounts.append(other)
    other.start()
    assert (run_in(other) / "kept").read_bytes() == b"not lost"
    for secret in (mount.token_file.read_text().strip(),):
        assert secret not in mount.log_text()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert secret.encode() not in process.read_bytes()
            except FileNotFoundError:
                continue

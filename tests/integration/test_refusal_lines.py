"""What a user can do wrong about a mount is one line that says what to do: wrong addresses, certificates, clocks, full
disks, a machine without FUSE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from support.helped_machine import HelpedMachine
from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until
from support.shifted_clock import shifted_clock
from support.small_disk import fill, small_disk

USER = "user-123"
MOUNT_FAILED = 32
DAY_SECONDS = 86_400
HANGS = (
    "the master did not answer: it takes connections and says nothing: is it the master, and does it hang?"
)
CLOCK_ADVICE = "`timedatectl set-ntp true` on both machines"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(tmp_path: Path, authority: trustme.CA) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def write_certificate(certificate: trustme.LeafCert, directory: Path) -> tuple[str, ...]:
    """The arguments of a master that has it."""
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    return "--tls-cert", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")


@pytest.fixture
def tls_master(tmp_path: Path, authority: trustme.CA) -> Iterator[MasterProcess]:
    """Its certificate is for `localhost`, from the year 2000 on."""
    master = MasterProcess(
        tmp_path / "master", *write_certificate(authority.issue_cert("localhost"), tmp_path)
    )
    master.start()
    yield master
    master.kill()


def mount_at(master: MasterProcess, tmp_path: Path, *, host: str = "localhost", options: str) -> MountProcess:
    """Not started; TLS or not as the options say."""
    port = master.address.rpartition(":")[2]
    return MountProcess(tmp_path / "mount", f"{host}:{port}", master.make_token(USER), options=options)


def refusal(mount: MountProcess) -> str:
    """What the refused command said, without the beginning that names the source."""
    done = mount.mount_command()
    assert (done.returncode, done.stdout) == (MOUNT_FAILED, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert mount.token_file.read_text() not in done.stderr + mount.log_text()
    assert not mount.mount_point.is_mount()
    beginning = f"cloudai: {mount.source}: "
    assert done.stderr.startswith(beginning)
    return done.stderr.removeprefix(beginning).rstrip()


def test_port_where_nobody_listens(shared_master: MasterProcess, tmp_path: Path) -> None:
    mount = MountProcess(tmp_path / "mount", "127.0.0.1:1", shared_master.make_token(USER))

    assert refusal(mount) == (
        "the master did not answer: nobody listens there: are host and port right, and is the master running?"
    )


def test_host_that_does_not_exist(shared_master: MasterProcess, tmp_path: Path) -> None:
    token = shared_master.make_token(USER)
    mount = MountProcess(tmp_path / "mount", "master.invalid:7443", token, options="timeo=20")

    assert refusal(mount) == (
        "the master did not answer: no host master.invalid is known here: is the name right?"
    )


@pytest.mark.parametrize("host", ["master..example", f"{'a' * 64}.example"])
def test_host_whose_name_cannot_be(shared_master: MasterProcess, tmp_path: Path, host: str) -> None:
    mount = mount_at(shared_master, tmp_path, host=host, options="timeo=20")

    assert refusal(mount) == f"the master did not answer: no host {host} is known here: is the name right?"


def test_master_that_wants_tls(tls_master: MasterProcess, tmp_path: Path) -> None:
    assert refusal(mount_at(tls_master, tmp_path, options="insecure")) == (
        "the master did not answer: it wants TLS: mount without `insecure`, and with ca= where its authority is one"
        " of your own"
    )


def test_master_that_has_no_tls(shared_master: MasterProcess, tmp_path: Path, ca_file: Path) -> None:
    assert refusal(mount_at(shared_master, tmp_path, options=f"ca={ca_file}")) == (
        "the master did not answer: what listens there speaks no TLS: mount with `insecure`"
    )


def test_file_of_an_authority_that_holds_no_certificate(tls_master: MasterProcess, tmp_path: Path) -> None:
    no_pem = tmp_path / "ca.txt"
    no_pem.write_text("the authority of user-123\n")

    assert refusal(mount_at(tls_master, tmp_path, options=f"ca={no_pem}")) == (
        f"the master did not answer: {no_pem} holds no certificate: ca= names the PEM file of the master's authority"
    )


def test_master_that_hangs(tls_master: MasterProcess, tmp_path: Path, ca_file: Path) -> None:
    mount = mount_at(tls_master, tmp_path, options=f"ca={ca_file}")

    with tls_master.silent():
        assert refusal(mount) == HANGS


def test_master_without_tls_that_hangs(master: MasterProcess, tmp_path: Path) -> None:
    mount = mount_at(master, tmp_path, options="insecure")

    with master.silent():
        assert refusal(mount) == HANGS


def test_certificate_of_another_host(tls_master: MasterProcess, tmp_path: Path, ca_file: Path) -> None:
    assert refusal(mount_at(tls_master, tmp_path, host="127.0.0.1", options=f"ca={ca_file}")) == (
        "the master did not answer: its certificate is for localhost, not for 127.0.0.1: mount it by a name that the"
        " certificate has"
    )


def test_certificate_of_an_authority_that_nobody_trusts(tls_master: MasterProcess, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))

    for options in ("timeo=20", f"ca={stranger}"):
        assert refusal(mount_at(tls_master, tmp_path, options=options)) == (
            "the master did not answer: its certificate is signed by nobody that is trusted here: ca= names the file"
            " of its authority"
        )


def test_certificate_that_is_not_valid_yet_by_a_clock_that_is_behind(
    tls_master: MasterProcess, tmp_path: Path, ca_file: Path
) -> None:
    mount = mount_at(tls_master, tmp_path, options=f"ca={ca_file}")
    mount.environment = shifted_clock(-40 * 365 * DAY_SECONDS, tmp_path)

    line = refusal(mount)

    assert re.fullmatch(
        r"the master did not answer: its certificate is valid from 2000-01-01 00:00:00Z on, and this machine's clock"
        r" says 19\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ: `timedatectl set-ntp true` sets it; if that is right, the certificate"
        r" is not",
        line,
    ), line


def refusal_in_a_year(master: MasterProcess, ca_file: Path, directory: Path) -> str:
    """What is said where this machine's clock is that far ahead; the master is started for it."""
    master.start()
    try:
        mount = mount_at(master, directory, options=f"ca={ca_file}")
        mount.environment = shifted_clock(400 * DAY_SECONDS, directory)
        return refusal(mount)
    finally:
        master.kill()


def test_certificate_that_has_ended(tmp_path: Path, authority: trustme.CA, ca_file: Path) -> None:
    ended = authority.issue_cert("localhost", not_after=datetime(2026, 11, 20, 15, 4, 5, tzinfo=UTC))
    master = MasterProcess(tmp_path / "master", *write_certificate(ended, tmp_path))
    line = refusal_in_a_year(master, ca_file, tmp_path)

    assert re.fullmatch(
        r"the master did not answer: its certificate was valid until 2026-11-20 15:04:05Z, and this machine's clock"
        r" says 20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ: `timedatectl set-ntp true` sets it; if that is right, the master"
        r" needs a new one",
        line,
    ), line


def test_authority_that_has_ended_although_what_it_signed_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library takes no end of an authority; all but this one end in the year 3000.
    with monkeypatch.context() as patch:
        patch.setattr(trustme, "DEFAULT_EXPIRY", datetime(2026, 11, 20, 15, 4, 5, tzinfo=UTC))
        authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    good = authority.issue_cert("localhost")
    master = MasterProcess(tmp_path / "master", *write_certificate(good, tmp_path))
    line = refusal_in_a_year(master, ca_file, tmp_path)

    assert re.fullmatch(
        r"the master did not answer: its authority's certificate has ended, and this machine's clock says"
        r" 20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ: `timedatectl set-ntp true` sets it; if that is right, the authority"
        r" needs another one",
        line,
    ), line


@pytest.fixture
def early_master(tmp_path: Path) -> Iterator[MasterProcess]:
    """Its clock is two days ahead."""
    master = MasterProcess(tmp_path / "master")
    master.environment = shifted_clock(2 * DAY_SECONDS, tmp_path)
    master.start()
    yield master
    master.kill()


EXPIRED = re.compile(
    r"not authenticated: the token has expired; this machine's clock is at least (\d+) s behind the master's:"
    rf" {re.escape(CLOCK_ADVICE)}; `cloudai-master token create` makes a new one; write it to (\S+)"
)


def test_token_that_has_expired_by_the_masters_clock_alone(
    early_master: MasterProcess, tmp_path: Path
) -> None:
    mount = mount_at(early_master, tmp_path, options="insecure")

    line = refusal(mount)

    said = EXPIRED.fullmatch(line)
    assert said is not None, line
    assert 2 * DAY_SECONDS - 10 <= int(said[1]) <= 2 * DAY_SECONDS + 10
    assert said[2] == str(mount.token_file)


def test_mount_of_the_system_says_the_same_of_clocks_that_differ(early_master: MasterProcess) -> None:
    with HelpedMachine(early_master.address, early_master.make_token(USER)) as machine:
        done = machine.mount()

        assert (done.returncode, done.stdout) == (MOUNT_FAILED, "")
        beginning = f"mount.cloudai: {machine.source}: "
        assert done.stderr.startswith(beginning)
        assert EXPIRED.fullmatch(done.stderr.removeprefix(beginning).rstrip("\n")) is not None, done.stderr


def test_mount_with_a_token_that_is_good_by_both_clocks_says_that_they_differ_in_its_log(
    early_master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> None:
    token = early_master.make_token(USER, days=30)
    mount = MountProcess(tmp_path / "mount", early_master.address, token)
    mounts.append(mount)

    mount.start()

    (line,) = [line for line in mount.log_text().splitlines() if "clock" in line]
    assert re.search(
        rf"WARNING .*: this machine's clock is at least 172\d+ s behind the master's: {CLOCK_ADVICE}", line
    )
    assert "behind the master's" in mount.cloudai("doctor", str(mount.mount_point)).stdout


def test_doctor_tells_of_the_clock_beside_the_token_that_has_expired_by_it(
    early_master: MasterProcess, mounts: list[MountProcess], tmp_path: Path
) -> None:
    mount = MountProcess(tmp_path / "mount", early_master.address, early_master.make_token(USER, days=30))
    mounts.append(mount)
    mount.start()
    early_master.kill()
    early_master.environment = shifted_clock(60 * DAY_SECONDS, tmp_path)
    early_master.start()

    said = ""

    def is_refused() -> bool:
        nonlocal said
        said = mount.cloudai("doctor", str(mount.mount_point)).stdout
        return "not authenticated: the token has expired" in said

    # The mount may yet have to notice that there is a master again.
    wait_until(is_refused, "the refusal", seconds_max=60)
    assert re.search(r"clock +at least 518\d+ s behind the master's", said), said


def test_token_that_has_expired_by_both_clocks_is_to_be_made_anew(
    shared_master: MasterProcess, tmp_path: Path
) -> None:
    mount = mount_at(shared_master, tmp_path, options="insecure")
    mount.token_file.write_text(shared_master.make_token(USER, days=-1))

    assert refusal(mount) == (
        "not authenticated: the token has expired; `cloudai-master token create` makes a new one; write it to "
        f"{mount.token_file}"
    )


def test_machine_without_fuse(shared_master: MasterProcess) -> None:
    with HelpedMachine(shared_master.address, shared_master.make_token(USER)) as machine:
        machine.namespace.must(
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9",
        )

        done = machine.mount()

        assert (done.returncode, done.stdout) == (MOUNT_FAILED, "")
        assert done.stderr == (
            "mount.cloudai: /dev/fuse is missing: `modprobe fuse`, or start the container with --device /dev/fuse\n"
        )


def test_state_directory_on_a_full_disk(shared_master: MasterProcess, tmp_path: Path) -> None:
    mount = mount_at(shared_master, tmp_path, options="insecure")
    with small_disk(tmp_path / "disk", 4) as disk:
        fill(disk)
        mount.state_dir = disk / "state"

        done = mount.mount_command()

    assert (done.returncode, done.stdout) == (MOUNT_FAILED, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"cloudai: {mount.state_dir}: ")
    assert done.stderr.endswith(": make room there, or give another state_dir=\n")

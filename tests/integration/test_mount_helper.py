"""`mount -t cloudai` and fstab, through mount(8) itself and the helper that `cloudai install-helper` puts in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.helped_machine import HelpedMachine
from support.master_process import MasterProcess
from support.mount_process import MountProcess, wait_until

USER = "user-123"
USAGE = 1
MOUNT_FAILED = 32


@pytest.fixture
def machine(shared_master: MasterProcess) -> Iterator[HelpedMachine]:
    with HelpedMachine(shared_master.address, shared_master.make_token(USER)) as machine:
        yield machine
        assert "Traceback" not in machine.log_text()


def refusal(machine: HelpedMachine, *arguments: str | Path) -> tuple[int, str]:
    """The status and the one line of a `mount -t cloudai` that mounts nothing."""
    done = machine.mount(*arguments)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert machine.token_file.read_text() not in done.stderr
    assert machine.find_mounted("TARGET") == []
    return done.returncode, done.stderr


def test_mount_and_umount_of_the_system_work(
    machine: HelpedMachine, shared_mount: MountProcess, run: Path
) -> None:
    (run / "file").write_text("content\n")
    shared_mount.wait_durable(run)
    place = machine.mount_point / run.relative_to(shared_mount.mount_point)

    done = machine.mount()

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.run("cat", place / "file").stdout == "content\n"
    assert machine.run("sh", "-c", f"echo mine > {place}/own").returncode == 0
    done = machine.run("umount", machine.mount_point)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.find_mounted("TARGET") == []
    wait_until((run / "own").exists, "what was written before umount")


@pytest.mark.parametrize("file_system_type", ["cloudai", "fuse.cloudai"])
def test_findmnt_shows_the_source_and_the_type_and_no_secret(
    machine: HelpedMachine, file_system_type: str
) -> None:
    done = machine.mount("-t", file_system_type)

    assert (done.returncode, done.stderr) == (0, "")
    assert machine.find_mounted("SOURCE", "FSTYPE") == [machine.source, "fuse.cloudai"]
    table = machine.run("cat", "/proc/mounts").stdout
    assert f"{machine.source} {machine.mount_point} fuse.cloudai rw,nosuid,nodev," in table
    shown = (
        table
        + machine.run("findmnt", "--all", "--output-all").stdout
        + machine.run("cat", "/run/mount/utab").stdout
    )
    assert machine.token_file.read_text() not in shown
    assert str(machine.token_file) not in shown


def test_lines_of_fstab_are_mounted_once(machine: HelpedMachine) -> None:
    second = machine.make_directory("second")
    words = "_netdev,nofail,x-systemd.automount,defaults,comment=results"
    fstab = machine.write_fstab(
        f"{machine.source} {machine.mount_point} cloudai {words},{machine.options} 0 0",
        f"{machine.source} {second} fuse.cloudai ro,noatime,user,{words},{machine.options_of('second-state')} 0 0",
        f"{machine.source} {machine.directory}/missing cloudai noauto,{words} 0 0",
    )

    for _ in range(2):
        done = machine.run("mount", "--all", "--fstab", fstab)
        assert (done.returncode, done.stderr) == (0, "")

    assert machine.find_mounted("SOURCE", "FSTYPE") == [machine.source, "fuse.cloudai"]
    assert machine.run("ls", machine.mount_point).stdout == f"{USER}\n"
    (options,) = machine.find_mounted("OPTIONS", at=second)
    assert {"ro", "noexec", "nosuid", "nodev", "noatime"} <= set(options.split(","))
    assert "Read-only" in machine.run("mkdir", second / USER / "task").stderr


def test_words_that_others_read_in_a_line_of_fstab_are_passed_by(machine: HelpedMachine) -> None:
    """Those of systemd, desktops and mount(8) itself, in three lines, as some exclude each other."""
    of_systemd = "_netdev,nofail,x-systemd.automount,x-systemd.mount-timeout=30,x-systemd.idle-timeout=1min"
    of_systemd += ",x-systemd.requires=network-online.target,x-initrd.mount"
    of_desktops = "x-gvfs-show,x-gvfs-name=My%20results,comment=results,user,users,owner,group,nouser"
    of_mount = (
        "defaults,auto,rw,async,noatime,relatime,nodiratime,lazytime,silent,nosuid,nodev,exec,X-mount.mkdir"
    )
    places = [machine.mount_point, machine.make_directory("second"), machine.make_directory("third")]
    fstab = machine.write_fstab(
        *(
            f"{machine.source} {place} cloudai {words},{machine.options_of(f'state-of-{place.name}')} 0 0"
            for place, words in zip(places, (of_systemd, of_desktops, of_mount), strict=True)
        )
    )

    done = machine.run("mount", "--all", "--fstab", fstab)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [machine.run("ls", place).stdout for place in places] == [f"{USER}\n"] * 3
    assert [machine.run("test", "-w", place).returncode for place in places] == [0, 0, 0]


@pytest.mark.parametrize("word", ["sync", "dirsync", "nosymfollow"])
def test_word_that_would_promise_what_is_not_kept_is_refused_by_name(
    machine: HelpedMachine, word: str
) -> None:
    status, line = refusal(machine, "-o", word)

    assert status == USAGE
    assert line.startswith(f"mount.cloudai: unknown mount option {word!r}; known are ")


def test_unknown_option_is_refused_by_name_unless_mount_is_told_to_be_sloppy(machine: HelpedMachine) -> None:
    status, line = refusal(machine, "-o", "cache_sise=1G")
    assert status == USAGE
    assert line.startswith("mount.cloudai: unknown mount option 'cache_sise'; known are ")

    done = machine.mount("-s", "-o", "cache_sise=1G")
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_value_is_refused_though_mount_is_told_to_be_sloppy(machine: HelpedMachine) -> None:
    assert refusal(machine, "-s", "-o", "cache_size=lots") == (
        USAGE,
        "mount.cloudai: mount option cache_size=lots: expected a size such as 20G\n",
    )


def test_place_that_cannot_be_mounted_on_is_refused(machine: HelpedMachine) -> None:
    (machine.mount_point / "file").write_text("stays")

    line = f"mount.cloudai: {machine.mount_point}: the directory is not empty\n"
    assert refusal(machine) == (MOUNT_FAILED, line)
    assert refusal(machine, "-f") == (MOUNT_FAILED, line)


def test_master_that_is_not_there_is_refused(machine: HelpedMachine) -> None:
    machine.source = "127.0.0.1:1"

    status, line = refusal(machine)

    assert status == MOUNT_FAILED
    assert line.startswith("mount.cloudai: 127.0.0.1:1: the master did not answer")


def test_rehearsal_checks_and_mounts_nothing(machine: HelpedMachine) -> None:
    done = machine.mount("-f", "-n", "-v")

    assert (done.returncode, done.stderr) == (0, "")
    assert machine.find_mounted("TARGET") == []
    assert not (machine.directory / "state").exists()
    machine.token_file.unlink()
    assert machine.mount("-f").returncode == USAGE


def test_verbose_mount_says_what_is_where(machine: HelpedMachine) -> None:
    done = machine.mount("-v", "-n")

    assert done.returncode == 0
    assert f"mount.cloudai: {machine.source} is at {machine.mount_point} (pid " in done.stdout


def test_read_only_mount_takes_no_changes(
    machine: HelpedMachine, run: Path, shared_mount: MountProcess
) -> None:
    place = machine.mount_point / run.relative_to(shared_mount.mount_point)

    assert machine.mount("-r").returncode == 0

    assert "Read-only file system" in machine.run("touch", place / "file").stderr
    assert machine.find_mounted("OPTIONS")[0].startswith("ro,")


def test_remount_makes_a_mount_read_only_and_writable_again(
    machine: HelpedMachine, run: Path, shared_mount: MountProcess
) -> None:
    place = machine.mount_point / run.relative_to(shared_mount.mount_point)
    machine.mount()

    assert machine.run("mount", "-o", "remount,ro,noexec", machine.mount_point).returncode == 0
    assert "Read-only file system" in machine.run("touch", place / "file").stderr
    assert {"ro", "noexec", "nosuid", "nodev"} <= set(machine.find_mounted("OPTIONS")[0].split(","))
    assert machine.run("mount", "-o", "remount,rw", machine.mount_point).returncode == 0
    assert machine.run("touch", place / "file").stderr == ""


def test_mount_that_began_read_only_is_not_remounted_writable(machine: HelpedMachine) -> None:
    machine.mount("-r")

    done = machine.run("mount", "-o", "remount,rw", machine.mount_point)

    assert done.returncode == MOUNT_FAILED
    assert done.stderr == (
        f"mount.cloudai: {machine.mount_point}: it was mounted ro: unmount it, and mount it rw\n"
    )
    assert machine.find_mounted("OPTIONS")[0].startswith("ro,")


def test_wrong_call_is_a_usage_error(machine: HelpedMachine) -> None:
    for arguments in ([], [machine.source], ["-q", machine.source, machine.mount_point]):
        done = machine.run("/sbin/mount.cloudai", *arguments)
        assert done.returncode == USAGE
        assert done.stderr.endswith("usage: mount.cloudai SOURCE DIR [-sfnvrw] [-o OPTIONS]\n")


def test_helpers_are_removed_and_those_of_others_are_left_alone(machine: HelpedMachine) -> None:
    done = machine.cloudai("install-helper", "--remove")
    assert done.stdout == "removed /sbin/mount.cloudai\nremoved /sbin/mount.fuse.cloudai\n"
    assert machine.cloudai("install-helper", "--remove").stdout == "nothing was installed\n"
    assert "unknown filesystem type 'cloudai'" in machine.mount().stderr

    machine.namespace.seen(Path("/usr/sbin/mount.fuse.cloudai")).write_text("#!/bin/sh\n")
    for arguments in ([], ["--remove"]):
        done = machine.cloudai("install-helper", *arguments)
        assert done.returncode == 2
        assert done.stderr == "cloudai: /sbin/mount.fuse.cloudai is not of CloudAI FS: it stays as it is\n"
    assert machine.run("ls", "/sbin/mount.cloudai").returncode != 0


def test_helper_whose_installation_is_gone_says_so(machine: HelpedMachine) -> None:
    script = machine.namespace.seen(Path("/usr/sbin/mount.cloudai"))
    lines = [
        "python=/gone/bin/python" if line.startswith("python=") else line
        for line in script.read_text().splitlines()
    ]
    script.write_text("\n".join(lines) + "\n")

    assert refusal(machine) == (
        MOUNT_FAILED,
        "mount.cloudai: /gone/bin/python cannot be run: install CloudAI FS again, or `rm /sbin/mount.cloudai`\n",
    )


def test_helper_needs_no_home_and_no_path(machine: HelpedMachine) -> None:
    words = f"{machine.options},rw"
    done = machine.run(
        "env",
        "-i",
        f"CLOUDAI_RUNTIME_DIR={machine.environment['CLOUDAI_RUNTIME_DIR']}",
        "/sbin/mount.cloudai",
        machine.source,
        machine.mount_point,
        "-o",
        words,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(machine.namespace.seen(machine.mount_point)) == [USER]


@pytest.fixture
def config_file(machine: HelpedMachine) -> Path:
    """The machine's configuration, which has all that a mount needs."""
    machine.namespace.keep_to_itself(Path("/etc"), machine.make_directory("etc"))
    config_file = machine.namespace.seen(Path("/etc/cloudai/config.toml"))
    config_file.parent.mkdir()
    needed = machine.options.replace("insecure,", "").replace("=", " = '").replace(",", "'\n")
    config_file.write_text(f"[mount]\ninsecure = true\n{needed}'\n")
    return config_file


def test_configured_mount_needs_no_options(machine: HelpedMachine, config_file: Path) -> None:
    done = machine.run("mount", "-t", "cloudai", machine.source, machine.mount_point)

    assert (done.returncode, done.stderr) == (0, "")
    assert machine.run("ls", machine.mount_point).stdout == f"{USER}\n"
    assert (machine.directory / "state" / "daemon.log").exists()


def test_configured_mount_is_read_only_though_mount_says_rw(
    machine: HelpedMachine, config_file: Path
) -> None:
    config_file.write_text(config_file.read_text() + "ro = true\n")

    assert machine.run("mount", "-t", "cloudai", machine.source, machine.mount_point).returncode == 0

    assert machine.find_mounted("OPTIONS")[0].startswith("ro,")


def test_unknown_option_in_a_file_is_refused_with_its_place(
    machine: HelpedMachine, config_file: Path
) -> None:
    config_file.write_text("[mount]\ncache_sise = '1G'\n")

    status, line = refusal(machine)

    assert status == USAGE
    assert line.startswith(
        "mount.cloudai: /etc/cloudai/config.toml: [mount] cache_sise: unknown option; known are "
    )


@pytest.mark.skipif("autofs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no autofs")
def test_place_is_mounted_when_it_is_first_looked_into(machine: HelpedMachine) -> None:
    with machine.automount():
        assert machine.run("ls", machine.mount_point).stdout == f"{USER}\n"

        kinds = machine.run("findmnt", "-n", "-o", "FSTYPE", machine.mount_point).stdout.split()
        assert kinds == ["autofs", "fuse.cloudai"]
        assert machine.cloudai("umount", machine.mount_point).returncode == 0
        done = machine.cloudai("umount", machine.mount_point)
        assert done.stderr == f"cloudai: {machine.mount_point}: not mounted\n"
        assert machine.run("ls", machine.mount_point).stdout == f"{USER}\n"

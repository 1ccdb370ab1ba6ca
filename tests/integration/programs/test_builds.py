"""Building in a run: gcc and make, a virtual environment, pip. What was built works where it was not built."""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from support.mount_process import MountProcess
from support.tools import run_shell, run_tool
from support.tree_snapshot import AtMaster, contents

# 6,000 lines of C and a Makefile, which come with the headers that this project is built with.
C_SOURCES = Path("/usr/share/doc/libfuse3-dev/examples")
REPOSITORY = Path(__file__).parents[3]
needs_c_sources = pytest.mark.skipif(
    not C_SOURCES.is_dir(), reason="dpkg leaves documentation out on this machine, and examples with it"
)
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet")


@needs_c_sources
def test_gcc_and_make_build_what_they_build_on_a_local_disk(
    run: Path, shared_mount: MountProcess, tmp_path: Path, at_master: AtMaster
) -> None:
    for place in (run / "build", tmp_path / "build"):
        shutil.copytree(C_SOURCES, place)
        run_tool("make", "-j2", "--silent", cwd=place)
    shared_mount.wait_durable(run)

    # By the times of files alone: of seventeen programs the two that are older than their source.
    assert run_tool("make", cwd=run / "build") == "make: Nothing to be done for 'all'.\n"
    run_shell("touch hello.c; rm null", cwd=run / "build")
    assert len(run_tool("make", cwd=run / "build").splitlines()) == 2

    elsewhere = at_master() / "build"
    assert contents(elsewhere) == contents(tmp_path / "build")
    assert run_tool("make", "--question", cwd=elsewhere) == ""
    assert "usage:" in run_tool(elsewhere / "hello", "--help")


@needs_c_sources
def test_archive_and_shared_library_are_linked_and_loaded(run: Path, at_master: AtMaster) -> None:
    """ar changes an archive in place, ld writes here and there, and the loader maps what they have made."""
    shutil.copytree(C_SOURCES, run / "build")
    run_shell(
        """
        for name in hello_ll passthrough_ll null; do
            gcc -c -fPIC -g -Dmain=main_$name $(pkg-config fuse3 --cflags) $name.c
            ar rcs libexamples.a $name.o
        done
        ar d libexamples.a null.o; ranlib libexamples.a
        gcc -shared -o libexamples.so -Wl,--whole-archive libexamples.a -Wl,--no-whole-archive \
            $(pkg-config fuse3 --libs)
        strip --strip-debug libexamples.so
        """,
        cwd=run / "build",
    )

    elsewhere = at_master() / "build"

    assert run_tool("ar", "t", elsewhere / "libexamples.a") == "hello_ll.o\npassthrough_ll.o\n"
    load = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.main_hello_ll; library.main_passthrough_ll"
    run_tool(sys.executable, "-c", load, elsewhere / "libexamples.so")


def recorded_files(site_packages: Path) -> dict[Path, str]:
    """Each file that pip has written down, with the digest that it should have."""
    found: dict[Path, str] = {}
    for record in site_packages.glob("*.dist-info/RECORD"):
        with record.open(newline="") as lines:
            found |= {site_packages / name: digest for name, digest, _ in csv.reader(lines) if digest}
    return found


def digest_of(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).digest()
    return f"sha256={urlsafe_b64encode(digest).decode().rstrip('=')}"


@pytest.mark.timeout(300)  # pip builds and installs: half of the usual bound on a quiet machine
def test_virtual_environment_in_a_run_is_made_and_used_by_pip(run: Path, at_master: AtMaster) -> None:
    """pip builds this project from its sources in the run, and installs it."""
    sources = run / "sources"
    parts = ("pyproject.toml", "README.md", "daemon", "fusefs", "master", "model", "proto")
    run_tool("rsync", "-a", "--exclude=__pycache__", *(REPOSITORY / part for part in parts), sources)
    run_tool(sys.executable, "-m", "venv", run / "venv")
    python = run / "venv" / "bin" / "python"
    # The build's own tools are those of this environment: nothing is asked of a network.
    build = ("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", run / "wheels")
    run_tool(sys.executable, *PIP, *build, sources)
    (wheel,) = (run / "wheels").iterdir()

    run_tool(python, *PIP, "install", "--no-index", "--no-deps", wheel)

    elsewhere = at_master()
    (site_packages,) = (elsewhere / "venv" / "lib").glob("python*/site-packages")
    recorded = recorded_files(site_packages)
    assert site_packages / "cloudai_model" / "names.py" in recorded
    assert site_packages / "pip" / "__init__.py" in recorded
    assert [path for path, digest in recorded.items() if digest_of(path) != digest] == []
    there = elsewhere / "venv" / "bin" / "python"
    place = run_tool(there, "-B", "-c", "import cloudai_model.names as names; print(names.__file__)")
    assert place.strip() == str(site_packages / "cloudai_model" / "names.py")

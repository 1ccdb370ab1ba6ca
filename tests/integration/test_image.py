"""The image of the Containerfile, built and run: for `make test-image`, as it takes minutes and downloads packages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support.mount_process import wait_until
from support.podman import Podman

REPOSITORY = Path(__file__).parents[2]
BASE_ARCHIVE = os.environ.get("IMAGE_BASE", "")
"""A tar archive of a small Debian, in place of the image that the Containerfile begins with."""

IMAGE = "localhost/cloudai-fs:test"
BUILD_SECONDS_MAX = 1800.0

pytestmark = [
    pytest.mark.skipif(not BASE_ARCHIVE, reason="make test-image builds the image"),
    pytest.mark.timeout(2 * BUILD_SECONDS_MAX),
]

# How this machine reaches its package index, where it is told so.
_INDEX_FILES = (Path("/etc/pip.conf"), Path("/etc/ssl/certs"))


@pytest.fixture(scope="module")
def image(podman: Podman) -> str:
    base = "localhost/debian:test"
    podman("import", "--quiet", BASE_ARCHIVE, base)
    words: list[str | Path] = ["--isolation", "chroot", "--network", "host", "--ulimit", "nofile=1024:1024"]
    for path in _INDEX_FILES:
        words += ["--volume", f"{path}:{path}:ro"] if path.exists() else []
    words += ["--build-arg", f"BASE={base}", "--tag", IMAGE, REPOSITORY]
    podman("build", *words, seconds_max=BUILD_SECONDS_MAX)
    return IMAGE


def test_programs_are_there_and_nobody_is_root(podman: Podman, image: str) -> None:
    script = "id -u; cloudai --version; cloudai-master --version; cloudai-master token create --data-dir /data --user u"

    uid, *versions, token = podman("run", "--rm", image, "sh", "-c", script).stdout.splitlines()

    assert uid == "1000"
    assert [re.sub(r"[\d.]+$", "N", version) for version in versions] == [
        "cloudai, version N",
        "cloudai-master, version N",
    ]
    assert len(token.split(".")) == 3


def test_master_serves_in_it(podman: Podman, image: str) -> None:
    with podman.start(
        image, "cloudai-master", "serve", "--data-dir", "/data", "--listen", "127.0.0.1:0"
    ) as name:
        wait_until(
            lambda: "listening on 127.0.0.1:" in podman("logs", name).stdout, "the master's first line"
        )
        podman("stop", "--time", "20", name)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout == "0\n"

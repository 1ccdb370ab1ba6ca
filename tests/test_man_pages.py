"""`make man`: a page for each command, with what `--help` says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "man_pages.py"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The source of each by its name."""
    directory = tmp_path_factory.mktemp("man") / "pages"
    subprocess.run([sys.executable, SCRIPT, directory], check=True, capture_output=True, timeout=60)
    return {path.stem: path.read_text() for path in directory.iterdir()}


def test_each_command_of_both_programs_has_one(pages: dict[str, str]) -> None:
    assert pages.keys() >= {
        "cloudai",
        "cloudai-mount",
        "cloudai-run",
        "cloudai-master",
        "cloudai-master-token-create",
    }


def test_page_has_what_the_help_has(pages: dict[str, str]) -> None:
    page = pages["cloudai-mount"].replace("\\-", "-")

    assert "cloudai-mount - Mount the master at SOURCE on DIR, an empty directory" in page
    assert "[OPTIONS] SOURCE DIR" in page
    assert ".SH MOUNT OPTIONS" in page
    for word in ("--token-file", "staging_size=", "supervise", "$CLOUDAI_CONFIG"):
        assert word in page
    assert ".SH EXIT STATUS" in pages["cloudai"]


def test_no_line_is_taken_for_a_request_of_the_formatter(pages: dict[str, str]) -> None:
    known = (".TH ", ".SH ", ".B ", ".PP", ".TP", ".nf", ".fi")
    for name, page in pages.items():
        wrong = [line for line in page.splitlines() if line[:1] in (".", "'") and not line.startswith(known)]
        assert wrong == [], name
        assert "\b" not in page

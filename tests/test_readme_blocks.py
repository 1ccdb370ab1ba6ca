"""The README's commands are run by tests; this says what a marked block is, and that none is left out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.readme_blocks import read_blocks, run_block

TESTS = Path(__file__).parent


def test_block_ends_where_its_indentation_does(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n<!-- run: one -->\n\n    first\n\n      second\n\ntext\n\n    not marked\n")

    assert read_blocks(page) == {"one": "first\n\n  second\n"}


@pytest.mark.parametrize("name", read_blocks())
def test_marked_block_is_run_by_a_test_and_is_valid_bash(name: str) -> None:
    tests = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))

    one_line = tests.replace("(\n        ", "(").replace("(\n            ", "(")
    assert f'run_block("{name}"' in one_line or f'read_blocks()["{name}"]' in one_line
    subprocess.run(["bash", "-n"], input=read_blocks()[name], text=True, check=True)


def test_word_that_the_block_does_not_have_is_an_error() -> None:
    with pytest.raises(AssertionError, match="does not say no such word"):
        run_block(next(iter(read_blocks())), {"no such word": ""})

"""The Containerfile as it can be read; `make test-image` builds it (tests/integration/test_image.py)."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def steps(tmp_path: Path) -> list[tuple[str, str]]:
    """Instructions and what they are given, in order, of all stages."""
    parser = DockerfileParser(path=str(tmp_path))
    parser.content = (REPOSITORY / "Containerfile").read_text()
    return [
        (step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"
    ]


def test_what_is_copied_is_there_and_not_ignored(steps: list[tuple[str, str]]) -> None:
    copied = [value.split()[:-1] for name, value in steps if name == "COPY" and "--from" not in value]
    sources = {source for words in copied for source in words}
    taken = {
        line[1:] for line in (REPOSITORY / ".containerignore").read_text().splitlines() if line[:1] == "!"
    }

    assert sources == taken
    assert [source for source in sorted(sources) if not (REPOSITORY / source).exists()] == []


def test_all_packages_of_the_wheel_are_in_the_image(steps: list[tuple[str, str]]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = " ".join(value for name, value in steps if name == "COPY").split()

    assert {package.partition("/")[0] for package in packages} <= set(copied)


def test_it_ends_as_somebody_who_is_not_root(steps: list[tuple[str, str]]) -> None:
    assert [value for name, value in steps if name == "USER"] == ["1000"]


def test_scripts_are_valid_and_build_with_the_packages_of_the_makefile(steps: list[tuple[str, str]]) -> None:
    scripts = [value for name, value in steps if name == "RUN"]

    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    installed = re.search(r"--no-install-recommends\s+(.*?)\s*&&", scripts[0])
    makefile = re.search(
        r"^PACKAGES := ((?:.*\\\n)*.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE
    )
    assert installed is not None
    assert makefile is not None
    assert set(installed[1].split()) <= set(makefile[1].replace("\\", " ").split())

"""Commands that a page shows, run as they stand there.

A block of code that a test runs is marked by a comment above it, `<!-- run: NAME -->`, which nobody sees on the page.
The test says what the words of the page stand for on its machine; a word that the block does not have is an error, so
that neither changes without the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.mount_process import PROGRAM
from support.tools import run_tool

README = Path(__file__).parents[2] / "README.md"

_MARKED_BLOCK = re.compile(r"^<!-- run: ([a-z0-9-]+) -->\n\n?((?:(?:    .*)?\n)+)", re.MULTILINE)


def read_blocks(page: Path = README) -> dict[str, str]:
    """The marked blocks of a page by name, as scripts."""
    found = _MARKED_BLOCK.findall(page.read_text())
    blocks = {name: re.sub(r"^    ", "", text, flags=re.MULTILINE).strip() + "\n" for name, text in found}
    assert len(blocks) == len(found), "two blocks of a name"
    return blocks


def say_on_this_machine(script: str, words: Mapping[str, str]) -> str:
    """The block with each of `words`, which it must have, replaced by what it stands for."""
    for word, meaning in words.items():
        assert word in script, f"the block does not say {word}:\n{script}"
        script = script.replace(word, meaning)
    return script


def run_block(
    name: str,
    words: Mapping[str, str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    before: Sequence[str | Path] = (),
) -> str:
    """Runs a block of the README with bash, each of `words` replaced by what it stands for; what it printed.

    Fails with the first command that does. Our programs are found first, as after `. .venv/bin/activate`. `before`
    goes before the command, to run it somewhere else.
    """
    script = say_on_this_machine(read_blocks()[name], words)
    path = f'export PATH={PROGRAM.parent}:"$PATH"\n'
    variables = [f"{variable}={value}" for variable, value in (environment or {}).items()]
    return run_tool(
        *map(str, before), "env", *variables, "bash", "-euo", "pipefail", "-c", path + script, cwd=cwd
    )

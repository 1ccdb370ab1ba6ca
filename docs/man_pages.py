"""Writes the man pages of both programs and of each of their commands: `make man`.

They are made of the texts that `--help` shows, by click-man; what it leaves out, the tables at the end of the help, is
added here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
from click_man.core import generate_man_page

from cloudai_daemon.cli import cli as mount_program
from cloudai_master.cli import main as master_program

PROGRAMS = {"cloudai": mount_program, "cloudai-master": master_program}


def contexts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Of the command and of those below it that `--help` shows."""
    context = click.Context(command, info_name=name, parent=parent)
    # The whole first sentence: click cuts it for its lists.
    command.short_help = command.short_help or (command.help or "").partition(".")[0].replace("\n", " ")
    yield context
    if isinstance(command, click.Group):
        for below_name in command.list_commands(context):
            below = command.get_command(context, below_name)
            if below is not None and not below.hidden:
                yield from contexts(below, below_name, context)


def page_of(context: click.Context) -> str:
    text = generate_man_page(context, version=version("cloudai-fs"))
    # click's mark for lines that are to stay as they are.
    text = re.sub(
        r"^[\b]$\n((?:.+\n)+)", lambda lines: f".nf\n{lines[1]}.fi\n", f"{text}\n", flags=re.MULTILINE
    )
    tables = filter(None, (context.command.epilog or "").split("\n\n"))
    return text + "".join(map(section, tables))


def section(table: str) -> str:
    """One of the tables at the help's end. Its first line says what it is, and in parentheses how it is written."""
    first, *lines = [line for line in table.splitlines() if line.strip("\b")]
    title, _, how = first.rstrip(":").partition(" (")
    if how:
        lines = [f"({how}", *lines]
    text = "\n".join(re.sub(r"^([.'])", r"\\&\1", line.replace("\\", r"\e")) for line in lines)
    return f".SH {title.upper()}\n.nf\n{text}\n.fi\n"


def write_pages(directory: Path) -> list[Path]:
    """One page for each command in the directory, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, program in PROGRAMS.items():
        for context in contexts(program, name):
            path = directory / f"{context.command_path.replace(' ', '-')}.1"
            path.write_text(page_of(context))
            written.append(path)
    return written


if __name__ == "__main__":
    for written_path in write_pages(Path(sys.argv[1])):
        sys.stdout.write(f"{written_path}\n")

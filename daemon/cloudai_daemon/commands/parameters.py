"""What several commands take and how they speak."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from cloudai_daemon.options import OPTION_SPECS, parse_duration


class Duration(click.ParamType[float]):
    """Seconds, from `90`, `10m`, `2h`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class AnyPath(click.ParamType[Path]):
    """A path that is not looked at: click's own asks for its attributes, and a mount may not answer."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class MountOptionWords(click.ParamType[str]):
    """Mount options as mount(8) takes them: `word,name=value`."""

    name = "options"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, word = incomplete.rpartition(",")
        return [
            CompletionItem(f"{before}{comma}{spec.name}{'=' if spec.parse else ''}", help=spec.help)
            for spec in OPTION_SPECS
            if spec.name.startswith(word)
        ]


DURATION = Duration()
PATH = AnyPath()
MOUNT_OPTIONS = MountOptionWords()

_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def say(line: str) -> None:
    """One line for a person, beside whatever a command's output is: control characters of names come escaped."""
    escaped = _CONTROL_CHARACTERS.sub(lambda found: printable(found.group()), line)
    click.echo(f"cloudai: {escaped}", err=True)


def print_json(value: object) -> None:
    """For a program: names that are no UTF-8 come as the escapes of their surrogates."""
    click.echo(json.dumps(value, ensure_ascii=True, indent=2, default=str))


def printable(path: str) -> str:
    """A path on one line of a terminal, whatever bytes it is made of."""
    if path.isprintable():
        return path
    return repr(path)[1:-1]

"""`cloudai config`."""

from __future__ import annotations

from typing import Final

import click

from cloudai_daemon.commands.parameters import json_option, print_json, printable
from cloudai_daemon.option_sources import list_files, read_configured_options
from cloudai_daemon.options import OPTION_SPECS

_DEFAULT: Final = "default"


@click.command("config")
@json_option
def config_command(as_json: bool) -> None:
    """Show the options that a mount on this machine has unless its command line says otherwise.

    Each with where it comes from: /etc/cloudai/config.toml, ~/.config/cloudai/config.toml, the file that
    $CLOUDAI_CONFIG names, or $CLOUDAI_<OPTION>; what comes later counts. In a file the options are keys of a section
    [mount].
    """
    given = read_configured_options()
    rows = []
    for spec in OPTION_SPECS:
        if not spec.flag_value:
            continue  # rw is ro's opposite
        option = given.get(spec.field)
        default = spec.default if spec.parse is not None else "no"
        rows.append(
            {
                "option": spec.name,
                "value": option.text if option is not None else None,
                "default": default,
                "from": option.origin if option is not None else _DEFAULT,
            }
        )
    files = [{"path": str(path), "found": path.exists()} for path in list_files()]
    if as_json:
        print_json({"options": rows, "files": files})
        return
    for row in rows:
        value = row["default"] if row["value"] is None else row["value"]
        click.echo(f"{row['option']:<13}  {printable(str(value))}  ({row['from']})")
    for file in files:
        click.echo(f"{'read' if file['found'] else 'absent':<13}  {printable(str(file['path']))}")

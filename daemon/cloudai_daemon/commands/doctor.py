"""`cloudai doctor [DIR]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from cloudai_daemon.commands.parameters import PATH, json_option, print_json, printable
from cloudai_daemon.doctor.findings import Finding, FindingState, MountFindings
from cloudai_daemon.doctor.machine import look_at_machine
from cloudai_daemon.doctor.mounts import look_at_mounts
from cloudai_daemon.exit_codes import ExitCode


@click.command("doctor")
@click.argument("directory", metavar="[DIR]", required=False, type=PATH)
@json_option
def doctor_command(directory: Path | None, as_json: bool) -> None:
    """Check this machine and its mounts, and say what to do.

    Of the mounts all, or the one that DIR is in. A line for each check: ok, note (it works, and could be
    better) or problem. Exits with 1 if there is a problem. Changes nothing.
    """
    machine, mounts = look_at_machine(), look_at_mounts(directory)
    if directory is not None and not mounts:
        machine.append(
            Finding(
                check="mount",
                state=FindingState.PROBLEM,
                text=f"{directory} is in no CloudAI mount",
                advice="`cloudai mount SOURCE DIR`",
            )
        )
    if as_json:
        print_json(
            {
                "machine": [asdict(finding) for finding in machine],
                "mounts": [asdict(mount) for mount in mounts],
            }
        )
    else:
        _print(machine, mounts)
    every = [*machine, *(finding for mount in mounts for finding in mount.findings)]
    if any(finding.state == FindingState.PROBLEM for finding in every):
        sys.exit(ExitCode.PROBLEMS_FOUND)


def _print(machine: Iterable[Finding], mounts: Iterable[MountFindings]) -> None:
    click.echo("this machine")
    _print_findings(machine)
    for mount in mounts:
        click.echo(f"{printable(str(mount.mount_point))}  {mount.source}")
        _print_findings(mount.findings)


def _print_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        advice = f": {finding.advice}" if finding.advice else ""
        click.echo(f"  {finding.state:<7}  {finding.check:<14}  {printable(finding.text)}{printable(advice)}")

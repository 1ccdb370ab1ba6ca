"""The program `cloudai`: its commands, and the one place where an error becomes a line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from cloudai_daemon.commands.completion import completion_command
from cloudai_daemon.commands.config import config_command
from cloudai_daemon.commands.csi_driver import csi_driver_command
from cloudai_daemon.commands.doctor import doctor_command
from cloudai_daemon.commands.install_helper import install_helper_command
from cloudai_daemon.commands.ls import ls_command
from cloudai_daemon.commands.mount import mount_command
from cloudai_daemon.commands.parameters import say
from cloudai_daemon.commands.run import run_task_command
from cloudai_daemon.commands.seal import seal_command
from cloudai_daemon.commands.status import status_command
from cloudai_daemon.commands.umount import umount_command
from cloudai_daemon.commands.up import down_command, up_command
from cloudai_daemon.commands.volume_plugin import volume_plugin_command
from cloudai_daemon.commands.wait import wait_command
from cloudai_daemon.commands.warmup import warmup_command
from cloudai_daemon.exit_codes import EPILOG, CommandFailed, ExitCode
from cloudai_daemon.places import SYSTEM_PATH


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cloudai-fs", prog_name="cloudai")
def cli() -> None:
    """CloudAI FS: results of ML tasks, as files."""


for _command in (
    mount_command,
    umount_command,
    run_task_command,
    volume_plugin_command,
    csi_driver_command,
    status_command,
    wait_command,
    ls_command,
    seal_command,
    warmup_command,
    doctor_command,
    up_command,
    down_command,
    config_command,
    install_helper_command,
    completion_command,
):
    cli.add_command(_command)


def run_cli(arguments: Sequence[str]) -> int:
    """Runs one command; its exit status. Errors are one line on standard error."""
    try:
        cli.main(args=list(arguments), prog_name="cloudai", standalone_mode=False)
    except CommandFailed as error:
        say(error.line)
        return error.exit_code
    except click.UsageError as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        say(f"{error.format_message()}{hint}")
        return ExitCode.USAGE
    except click.ClickException as error:
        say(error.format_message())
        return ExitCode.FAILED
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # `cloudai ls | head`: the reader has what it wanted. The null device keeps the interpreter's
        # last flush from failing too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        say(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        return ExitCode.FAILED
    return ExitCode.OK


def main() -> None:
    """The entry point of the installed program."""
    os.environ.setdefault("PATH", SYSTEM_PATH)
    sys.exit(run_cli(sys.argv[1:]))

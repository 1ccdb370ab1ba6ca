"""`cloudai mount SOURCE DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from cloudai_daemon.commands.parameters import MOUNT_OPTIONS, PATH, say
from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_refusals import warn_of_full_cache
from cloudai_daemon.mounting import is_readable_by_others, prepare_mount, resolve_config, start_mount
from cloudai_daemon.option_sources import gather_options
from cloudai_daemon.options import describe_options
from cloudai_daemon.upload_wait import left_unmounted


@click.command("mount", epilog=describe_options())
@click.argument("source")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "-o",
    "option_words",
    type=MOUNT_OPTIONS,
    metavar="OPTIONS",
    multiple=True,
    help="Mount options, see below.",
)
@click.option("--token-file", type=PATH, help="The same as -o token_file=.")
@click.option("--supervise", is_flag=True, help="The same as -o supervise.")
@click.option("--foreground", is_flag=True, help="Serve in this process until the mount is gone.")
def mount_command(
    source: str,
    directory: Path,
    option_words: tuple[str, ...],
    token_file: Path | None,
    supervise: bool,
    foreground: bool,
) -> None:
    """Mount the master at SOURCE on DIR, an empty directory.

    SOURCE is HOST[:PORT] for the whole tree, HOST[:PORT]/USER[/TASK[/RUN]] for a part of it. Returns when the tree
    answers. The token comes from a file or from $CLOUDAI_TOKEN.
    """
    options = gather_options(",".join(option_words))
    if token_file is not None:
        options["token_file"] = token_file.expanduser().absolute()
    if supervise:
        options["supervise"] = True
    if foreground and options.get("supervise"):
        raise CommandFailed(
            ExitCode.USAGE,
            "supervise and --foreground exclude each other: whoever runs it in the foreground looks after it",
        )
    config = resolve_config(source, directory, options)
    if config.token_file is not None and is_readable_by_others(config.token_file):
        say(f"warning: {config.token_file} can be read by others; `chmod 600` it")
    prepare_mount(config)
    warn_of_full_cache(config.cache_dir, say)
    if not foreground:
        start_mount(config)
        return
    # Imported here: gRPC and pyfuse3 take half a second that no other command should pay for.
    from cloudai_daemon.mount_process import run_daemon
    from cloudai_fusefs.mount import serve_mount

    failures: list[str] = []

    def report(failure: str | None) -> None:
        if failure is not None:
            failures.append(failure)

    exit_status = run_daemon(config, serve_mount, report, to_stderr=True)
    if exit_status == ExitCode.NOT_DURABLE:
        raise left_unmounted(f"{config.mount_point}: not all is durable yet, see the log")
    if exit_status:
        raise CommandFailed(exit_status, failures[0] if failures else f"{config.mount_point}: see the log")

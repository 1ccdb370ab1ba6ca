"""`cloudai-master`: serve, the operator's tokens, and the scrub.

Exit codes: 0 done; 1 failed, with one line that says why, or what was scrubbed is damaged; 2 usage; 3 another
master runs on the data directory; 4 the address cannot be listened on; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NoReturn

import click

from cloudai_master.data_dir import DATABASE_NAME, DataDir, DataDirTaken
from cloudai_master.disk_chunk_store import DiskChunkStore
from cloudai_master.periodic_scrub import INTERVAL_HOURS_DEFAULT, INTERVAL_HOURS_MAX
from cloudai_master.scrub import BYTES_PER_SECOND_DEFAULT
from cloudai_master.tokens import TokenRecord, Tokens, load_key
from cloudai_model.errors import CloudAIError
from cloudai_model.service_manager import stderr_log

EXIT_FAILED: Final = 1
EXIT_DATA_DIR_TAKEN: Final = 3
EXIT_CANNOT_LISTEN: Final = 4
EXIT_INTERRUPTED: Final = 130

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

DAYS_DEFAULT: Final = 30.0
SECONDS_PER_HOUR: Final = 3600
SECONDS_PER_DAY: Final = 86_400

data_dir_option = click.option(
    "--data-dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The master's directory.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def fail(message: object, exit_code: int = EXIT_FAILED) -> NoReturn:
    click.echo(f"cloudai-master: {message}", err=True)
    sys.exit(exit_code)


@click.group()
@click.version_option(package_name="cloudai-fs")
def main() -> None:
    """The storage service of CloudAI FS: names, chunks, identities."""
    # What is in the data directory is the master's alone.
    os.umask(0o077)


@main.command()
@data_dir_option
@click.option(
    "--listen", default="127.0.0.1:7443", show_default=True, help="HOST:PORT; port 0: one that is free."
)
@click.option("--tls-cert", type=click.Path(dir_okay=False, path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="Its private key, PEM.")
@click.option(
    "--insecure",
    is_flag=True,
    help="Without TLS, listen beyond the loopback too: everybody on the way reads tokens and data.",
)
@click.option(
    "--scrub-interval-hours",
    type=click.FloatRange(min=0, max=INTERVAL_HOURS_MAX),
    default=INTERVAL_HOURS_DEFAULT,
    show_default=True,
    help="How often all stored chunks are compared with their digests, slowly, in the background; 0: never.",
)
@json_option
def serve(
    data_dir: Path,
    listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    scrub_interval_hours: float,
    as_json: bool,
) -> None:
    """Serve until SIGTERM. Prints `listening on HOST:PORT` when ready; logs go to stderr."""
    host, port = _parse_address(listen)
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if tls_cert is None and not insecure and not _is_loopback(host):
        raise click.UsageError(
            f"without TLS only the loopback is listened on, not {host}: "
            "give --tls-cert and --tls-key, or --insecure"
        )
    logging.basicConfig(handlers=[stderr_log()], level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # gRPC's own lines about a taken port come before ours, which says it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Here and not above: the token commands need no gRPC, whose import costs more than all they do.
    from cloudai_master.server import ServeConfig
    from cloudai_master.server import serve as serve_forever

    def on_ready(chosen_port: int) -> None:
        address = f"[{host}]:{chosen_port}" if ":" in host else f"{host}:{chosen_port}"
        click.echo(json.dumps({"listening": address}) if as_json else f"listening on {address}")
        sys.stdout.flush()

    try:
        certificate = None
        if tls_cert is not None and tls_key is not None:
            certificate = (tls_key.read_bytes(), tls_cert.read_bytes())
        config = ServeConfig(
            data_dir=data_dir,
            host=host,
            port=port,
            certificate=certificate,
            scrub_interval_seconds=scrub_interval_hours * SECONDS_PER_HOUR,
        )
    except OSError as error:
        fail(error)
    try:
        asyncio.run(serve_forever(config, on_ready))
    except DataDirTaken as error:
        fail(error, EXIT_DATA_DIR_TAKEN)
    except ConnectionError as error:
        fail(error, EXIT_CANNOT_LISTEN)
    except (CloudAIError, OSError, ValueError) as error:
        fail(error)


@main.command()
@data_dir_option
@click.option(
    "--bytes-per-second",
    type=click.IntRange(min=0),
    default=BYTES_PER_SECOND_DEFAULT,
    show_default=True,
    help="How fast the disk is read at most; 0: as fast as it can.",
)
@json_option
def scrub(data_dir: Path, bytes_per_second: int, as_json: bool) -> None:
    """Compare every stored chunk with its digest. Works beside a running master.

    What is damaged or gone is reported with the files that are made of it, and counts as missing from then on:
    whoever writes those bytes again heals it. Exit code 1 if there is any, 130 when interrupted.
    """
    if not (data_dir / DATABASE_NAME).exists():
        fail(f"there is no master's data in {data_dir}")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=LOG_FORMAT)
    # Here and not above, as in serve: a progress bar is a large library.
    from cloudai_master.scrub_report import scrub_once

    try:
        opened = DataDir(data_dir)
        database = opened.open_database()
        report = scrub_once(database, DiskChunkStore.beside(opened.path), bytes_per_second)
    except (CloudAIError, OSError) as error:
        fail(error)
    click.echo(json.dumps(report.as_json()) if as_json else report.as_text())
    if not report.is_complete:
        sys.exit(EXIT_INTERRUPTED)
    if report.damaged:
        sys.exit(EXIT_FAILED)


@main.group()
def token() -> None:
    """Make, list and revoke tokens. Works beside a running master."""


@token.command("create")
@data_dir_option
@click.option("--user", required=True, help="Whom the token speaks for; made when new.")
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=36500),
    default=DAYS_DEFAULT,
    show_default=True,
    help="How long it is valid.",
)
@click.option("--admin", is_flag=True, help="May see and change what is any user's.")
@click.option("--task-id", default="", help="Good for reading and writing this run alone.")
@json_option
def create_token(data_dir: Path, user: str, days: float, admin: bool, task_id: str, as_json: bool) -> None:
    """Print a new token, and nothing else."""
    if admin and task_id:
        raise click.UsageError("--admin and --task-id exclude each other")
    tokens = _open_tokens(data_dir)
    try:
        made = tokens.create(user, valid_seconds=days * SECONDS_PER_DAY, admin=admin, task_id=task_id)
        if as_json:
            caller = tokens.check(made)
            record = {"token": made, "id": caller.token_id, "user": user, "admin": admin, "task_id": task_id}
            click.echo(json.dumps(record | {"expires_at": _iso(caller.expires_at_ns)}))
        else:
            click.echo(made)
    except CloudAIError as error:
        fail(error)


@token.command("list")
@data_dir_option
@json_option
def list_tokens(data_dir: Path, as_json: bool) -> None:
    """List the tokens that were made, never the tokens themselves."""
    try:
        records = [_describe(record) for record in _open_tokens(data_dir).list_all()]
    except CloudAIError as error:
        fail(error)
    if as_json:
        click.echo(json.dumps(records))
        return
    for record in records:
        scope = "admin" if record["admin"] else record["task_id"] or "user"
        click.echo(f"{record['id']}  {record['user']}  {scope}  {record['state']}  {record['expires_at']}")


@token.command("revoke")
@data_dir_option
@click.argument("token_id")
@json_option
def revoke_token(data_dir: Path, token_id: str, as_json: bool) -> None:
    """Revoke a token by its id, as `token list` shows it. A running master refuses it within a second."""
    try:
        _open_tokens(data_dir).revoke(token_id)
    except CloudAIError as error:
        fail(error)
    click.echo(json.dumps({"revoked": token_id}) if as_json else f"revoked {token_id}")


def _open_tokens(path: Path) -> Tokens:
    try:
        data_dir = DataDir(path)
        return Tokens(data_dir.open_database(), load_key(data_dir.key_path))
    except (CloudAIError, OSError, ValueError) as error:
        fail(error)


def _describe(record: TokenRecord) -> dict[str, object]:
    now_ns = datetime.now(UTC).timestamp() * 1e9
    state = "revoked" if record.revoked_at_ns else "expired" if record.expires_at_ns <= now_ns else "valid"
    return {
        "id": record.token_id,
        "user": record.user,
        "admin": record.admin,
        "task_id": record.task_id,
        "state": state,
        "created_at": _iso(record.created_at_ns),
        "expires_at": _iso(record.expires_at_ns),
    }


def _iso(moment_ns: int) -> str:
    return datetime.fromtimestamp(moment_ns // 1_000_000_000, UTC).isoformat()


def _parse_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--listen takes HOST:PORT, not {address!r}")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

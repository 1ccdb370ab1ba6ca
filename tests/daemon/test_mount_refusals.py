"""What is said of a mount that cannot be made, or not as it was meant."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudai_daemon.master_probe import explain_silence
from cloudai_daemon.mount_refusals import describe_failure
from cloudai_model.errors import NoSpace
from support.fake_mount import make_config


@pytest.fixture
def curt_address() -> Iterator[str]:
    """Of somebody who hangs up on everybody, as a proxy does whose master is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                # All that was said is heard, else the end is a reset.
                connection.recv(65536)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("insecure", [True, False])
def test_who_hangs_up_may_well_speak_tls(curt_address: str, insecure: bool) -> None:
    assert explain_silence(curt_address, insecure=insecure, ca_file=None) == ""


def test_master_without_room_is_not_said_to_be_this_machine(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    error = NoSpace("the disk of the names database is full")

    assert describe_failure(config, error) == (
        "127.0.0.1:7443: no space left: the disk of the names database is full"
    )

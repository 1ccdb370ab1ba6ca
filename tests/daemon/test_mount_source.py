from __future__ import annotations

import pytest

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.mount_source import is_loopback, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("master.example", "master.example:7443"),
        ("master.example:80", "master.example:80"),
        ("[::1]", "[::1]:7443"),
        ("[::1]:80", "[::1]:80"),
        ("master.example/", "master.example:7443"),
        ("master.example/jo", "master.example:7443/jo"),
        ("master.example:80/jo/a task, of two/", "master.example:80/jo/a task, of two"),
        ("[::1]/jo/task/2026-11-20_15-04-05", "[::1]:7443/jo/task/2026-11-20_15-04-05"),
    ],
)
def test_source_is_spelled_out(text: str, source: str) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        *("", ":7443", "host:", "host:0", "host:65536", "host:x", "http://host", "a b", "::1", "/jo"),
        *("host//jo", "host/jo//", "host/.jo", "host/jo/latest", "host/jo/a\nb", "host/jo/task/latest"),
        *("host/jo/task/2026-13-20_15-04-05", "host/jo/task/2026-11-20_15-04-05/directory"),
    ],
)
def test_bad_source_is_a_usage_error(text: str) -> None:
    with pytest.raises(CommandFailed) as raised:
        parse_source(text)
    assert raised.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("localhost:1", True),
        ("127.1.2.3:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback_is_told_without_dns(source: str, expected: bool) -> None:
    assert is_loopback(source) is expected

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.options import (
    OPTION_SPECS,
    describe_options,
    parse_duration,
    parse_options,
    parse_size,
)


def test_every_option_is_parsed_to_its_field() -> None:
    text = (
        "token_file=/t,state_dir=/s,cache_dir=/c,cache_size=20G,memory=64M,names=5000,timeo=2m,uid=1000,gid=100,umask=027,"
        "ro,allow_other,insecure,ca=/ca.pem,metrics=127.0.0.1:9100"
    )
    assert parse_options(text) == {
        "token_file": Path("/t"),
        "state_dir": Path("/s"),
        "cache_dir": Path("/c"),
        "cache_bytes_max": 21474836480,
        "memory_bytes_max": 67108864,
        "names_max": 5000,
        "timeo_seconds": 120.0,
        "uid": 1000,
        "gid": 100,
        "umask": 0o027,
        "read_only": True,
        "allow_other": True,
        "insecure": True,
        "ca_file": Path("/ca.pem"),
        "metrics_address": "127.0.0.1:9100",
    }


def test_last_of_a_repeated_option_counts() -> None:
    assert parse_options("ro,rw,uid=1,uid=2") == {"read_only": False, "uid": 2}


def test_what_mount_passes_on_is_ignored() -> None:
    text = (
        "rw,_netdev,nofail,user=jo,suid,nodev,defaults,noauto,relatime,nodiratime,lazytime,silent,"
        "x-systemd.automount,X-a=b,comment=c,"
    )
    assert parse_options(text) == {"read_only": False}


@pytest.mark.parametrize(
    ("text", "kernel_words"),
    [
        ("noexec,noatime", ("noexec", "noatime")),
        ("noatime,noexec,noexec", ("noatime", "noexec")),
        ("noexec,noatime,exec", ("noatime",)),
    ],
)
def test_words_of_the_kernel_are_kept_for_it(text: str, kernel_words: tuple[str, ...]) -> None:
    assert parse_options(text) == {"kernel_words": kernel_words}


@pytest.mark.parametrize("text", ["exec", "noexec,exec", "noatime,atime"])
def test_what_the_kernel_does_anyway_is_not_told_to_it(text: str) -> None:
    assert parse_options(text) == {}


def test_unknown_options_may_be_passed_by() -> None:
    passed_by: list[str] = []
    assert parse_options("sync,ro,cache_sise=1G", passed_by.append) == {"read_only": True}
    assert passed_by == ["sync", "cache_sise"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cache_sise=1G", "'cache_sise'"),
        ("cache_size=lots", "cache_size=lots"),
        ("cache_size=0", "cache_size=0"),
        ("memory=31M", "at least 32M"),
        ("names=999", "at least 1000"),
        ("names=5k", "a number of names"),
        ("cache_size", "cache_size needs a value"),
        ("ro=1", "ro takes no value"),
        ("umask=888", "umask=888"),
        ("umask=1777", "umask=1777"),
        ("uid=nobody", "uid=nobody"),
        ("uid=4294967295", "uid=4294967295"),
        ("timeo=0", "timeo=0"),
        ("timeo=-5", "timeo=-5"),
        ("token_file=", "token_file="),
        ("metrics=", "HOST:PORT"),
        ("metrics=9100", "HOST:PORT"),
        ("metrics=127.0.0.1:0", "HOST:PORT"),
        ("metrics=127.0.0.1:65536", "HOST:PORT"),
        ("metrics=run/metrics.sock", "HOST:PORT"),
        ("metrics=0.0.0.0:9100", "on the loopback only"),
        ("metrics=10.0.0.1:9100", "on the loopback only"),
        ("metrics=:9100", "on the loopback only"),
        ("metrics=[::]:9100", "on the loopback only"),
        ("metrics=/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_bad_option_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(CommandFailed) as raised:
        parse_options(text)
    assert raised.value.exit_code == ExitCode.USAGE
    assert named in raised.value.line


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9100", "127.0.0.1:9100"),
        ("localhost:9100", "127.0.0.1:9100"),
        ("[::1]:9100", "[::1]:9100"),
        ("/run/cloudai/metrics.sock", "/run/cloudai/metrics.sock"),
    ],
)
def test_metrics_are_at_an_address_of_the_loopback_or_a_socket(text: str, address: str) -> None:
    assert parse_options(f"metrics={text}") == {"metrics_address": address}


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(CommandFailed):
        parse_options(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("512", 512), ("1k", 1024), ("1.5GiB", 1610612736), ("2TB", 2199023255552)],
)
def test_size_is_in_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_duration_has_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_help_names_every_option() -> None:
    text = describe_options()
    assert all(spec.name in text for spec in OPTION_SPECS)

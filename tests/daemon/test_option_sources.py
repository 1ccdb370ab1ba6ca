"""Where options come from, and which counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cloudai_daemon.exit_codes import CommandFailed, ExitCode
from cloudai_daemon.option_sources import gather_options, read_configured_options, variable_of
from cloudai_daemon.options import OPTION_SPECS
from support.fake_mount import RunCloudai


@pytest.fixture(autouse=True)
def home_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, which is not there yet; nothing else is configured."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    path = tmp_path / "home" / "cloudai" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def chosen_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "chosen.toml"
    monkeypatch.setenv("CLOUDAI_CONFIG", str(path))
    return path


def refusal() -> str:
    with pytest.raises(CommandFailed) as raised:
        gather_options("")
    assert raised.value.exit_code == ExitCode.USAGE
    assert "\n" not in raised.value.line
    return raised.value.line


def test_without_files_and_variables_there_is_what_the_command_line_says() -> None:
    assert gather_options("") == {}
    assert gather_options("ro,timeo=2m") == {"read_only": True, "timeo_seconds": 120.0}


def test_every_option_may_be_in_a_file(home_config: Path) -> None:
    home_config.write_text("""
        [mount]
        token_file = "/t"
        state_dir = "~/s"
        cache_dir = "/c"
        cache_size = "20G"
        memory = 67108864
        staging_size = "1.5G"
        timeo = "2m"
        drain = 0.5
        uid = 1000
        gid = "100"
        umask = "027"
        ro = true
        allow_other = false
        ca = "/ca.pem"
        metrics = "127.0.0.1:9100"
    """)
    assert gather_options("") == {
        "token_file": Path("/t"),
        "state_dir": Path.home() / "s",
        "cache_dir": Path("/c"),
        "cache_bytes_max": 21474836480,
        "memory_bytes_max": 67108864,
        "staging_bytes_max": 1610612736,
        "timeo_seconds": 120.0,
        "drain_seconds": 0.5,
        "uid": 1000,
        "gid": 100,
        "umask": 0o027,
        "read_only": True,
        "allow_other": False,
        "ca_file": Path("/ca.pem"),
        "metrics_address": "127.0.0.1:9100",
    }


def test_every_option_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "token_file": "/t",
        "cache_size": "20G",
        "memory": "64M",
        "names": "5000",
        "uid": "7",
        "gid": "8",
        "umask": "077",
        "metrics": "/run/m.sock",
    }
    for spec in OPTION_SPECS:
        if spec.name not in ("ro", "rw"):
            monkeypatch.setenv(variable_of(spec), texts.get(spec.name, "1" if spec.parse is None else "/5"))
    monkeypatch.setenv("CLOUDAI_STAGING_SIZE", "5")
    monkeypatch.setenv("CLOUDAI_TIMEO", "5s")
    monkeypatch.setenv("CLOUDAI_DRAIN", "5m")
    monkeypatch.setenv("CLOUDAI_RO", "Yes")
    given = gather_options("")
    assert given.keys() == {spec.field for spec in OPTION_SPECS}
    assert (given["timeo_seconds"], given["read_only"], given["umask"]) == (5.0, True, 0o077)


def test_what_comes_later_counts(
    home_config: Path, chosen_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_config.write_text("[mount]\ntimeo = 1\ndrain = 1\nuid = 1\ngid = 1\n")
    chosen_config.write_text("[mount]\ndrain = 2\nuid = 2\ngid = 2\n")
    monkeypatch.setenv("CLOUDAI_UID", "3")
    monkeypatch.setenv("CLOUDAI_GID", "3")
    assert gather_options("gid=4") == {"timeo_seconds": 1.0, "drain_seconds": 2.0, "uid": 3, "gid": 4}
    origins = {field: option.origin for field, option in read_configured_options().items()}
    assert origins == {
        "timeo_seconds": str(home_config),
        "drain_seconds": str(chosen_config),
        "uid": "$CLOUDAI_UID",
        "gid": "$CLOUDAI_GID",
    }


def test_flag_is_taken_back_by_a_later_place(home_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home_config.write_text("[mount]\nro = true\nallow_other = true\n")
    monkeypatch.setenv("CLOUDAI_ALLOW_OTHER", "no")
    assert gather_options("rw") == {"read_only": False, "allow_other": False}


def test_of_what_excludes_each_other_the_later_counts(
    home_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_config.write_text("[mount]\nca = '/ca.pem'\n")
    assert gather_options("insecure") == {"insecure": True}
    monkeypatch.setenv("CLOUDAI_INSECURE", "1")
    assert gather_options("") == {"insecure": True}
    assert gather_options("ca=/other.pem") == {"ca_file": Path("/other.pem")}


def test_token_of_the_environment_counts_more_than_a_file_of_a_file(
    home_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_config.write_text("[mount]\ntoken_file = '/t'\n")
    monkeypatch.setenv("CLOUDAI_TOKEN", "token-of-user-123")
    assert gather_options("") == {}
    assert gather_options("token_file=/u") == {"token_file": Path("/u")}
    monkeypatch.setenv("CLOUDAI_TOKEN_FILE", "/v")
    assert gather_options("") == {"token_file": Path("/v")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mount]\ncache_sise = 1\n", "[mount] cache_sise: unknown option; known are token_file, "),
        ("[mount]\ntoken = 'x'\n", "[mount] token: unknown option; "),
        ("timeo = 1\n", "unknown 'timeo': options are in a section [mount]"),
        ("[mounts]\n", "unknown 'mounts': options are in a section [mount]"),
        ("[mount]\ncache_size = 'lots'\n", "[mount] cache_size: 'lots': expected a size such as 20G"),
        ("[mount]\ncache_size = true\n", "[mount] cache_size: expected a string or a number"),
        ("[mount]\nro = 'yes'\n", "[mount] ro: expected true or false"),
        ("[mount]\numask = 18\n", "[mount] umask: expected a string"),
        (
            "[mount]\ntoken_file = 'token'\n",
            "[mount] token_file: a path in a file is absolute, or begins with ~",
        ),
        ("[mount]\nuid = -1\n", "[mount] uid: '-1': expected a numeric id"),
        ("[mount]\ntimeo 1\n", "(at line 2, column 7)"),
        ("[mount]\ntimeo = 1\ntimeo = 2\n", "(at line 3, column 10)"),
        ("#" * 300_000, "more than 256 KiB"),
    ],
)
def test_file_that_is_not_valid_is_refused_with_the_place(home_config: Path, text: str, said: str) -> None:
    home_config.write_text(text)
    line = refusal()
    assert line.startswith(f"{home_config}: ")
    assert said in line


def test_file_that_is_no_text_is_refused(home_config: Path) -> None:
    home_config.write_bytes(b"\xff")
    assert refusal().startswith(f"{home_config}: ")


def test_file_that_somebody_else_can_change_is_refused(home_config: Path) -> None:
    home_config.write_text("[mount]\ntimeo = 1\n")
    home_config.chmod(0o666)
    assert "somebody else can change it" in refusal()
    if os.geteuid() == 0:
        home_config.chmod(0o644)
        os.chown(home_config, 1234, -1)
        assert "somebody else can change it" in refusal()


def test_variable_that_is_not_valid_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDAI_RO", "perhaps")
    assert refusal() == "$CLOUDAI_RO: expected 1 or 0, yes or no, true or false"
    monkeypatch.setenv("CLOUDAI_RO", "")
    monkeypatch.setenv("CLOUDAI_TIMEO", "soon")
    assert refusal() == "$CLOUDAI_TIMEO: 'soon': expected a time such as 90, 10m or 2h"


def test_chosen_file_must_be_there(chosen_config: Path) -> None:
    assert refusal() == f"{chosen_config}: No such file or directory"


def test_outcome_is_shown_with_where_it_comes_from(
    cloudai: RunCloudai, home_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_config.write_text("[mount]\ncache_size = '30G'\nro = true\n")
    monkeypatch.setenv("CLOUDAI_TIMEO", "5m")

    answer = json.loads(cloudai("config", "--json").stdout)

    rows = {row["option"]: row for row in answer["options"]}
    assert rows.keys() == {spec.name for spec in OPTION_SPECS} - {"rw"}
    assert rows["cache_size"] == {
        "option": "cache_size",
        "value": "30G",
        "default": "20G",
        "from": str(home_config),
    }
    assert (rows["ro"]["value"], rows["ro"]["default"]) == ("yes", "no")
    assert (rows["timeo"]["value"], rows["timeo"]["from"]) == ("5m", "$CLOUDAI_TIMEO")
    assert (rows["memory"]["value"], rows["memory"]["from"]) == (None, "default")
    assert answer["files"][-1] == {"path": str(home_config), "found": True}
    lines = cloudai("config").stdout.splitlines()
    assert f"cache_size     30G  ({home_config})" in lines
    assert "memory         256M  (default)" in lines
    assert lines[-1] == f"read           {home_config}"


def test_outcome_of_what_is_not_valid_is_its_refusal(cloudai: RunCloudai, home_config: Path) -> None:
    home_config.write_text("[mount]\ncache_sise = 1\n")
    done = cloudai("config")
    assert done.returncode == 1
    assert done.stderr.startswith(f"cloudai: {home_config}: [mount] cache_sise: unknown option; ")

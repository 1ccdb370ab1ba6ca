from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai_daemon import places

absolute_paths = st.lists(
    st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20
    ).filter(lambda name: name not in (".", "..")),
    max_size=6,
).map(lambda names: Path("/", *names))


def test_escaped_path_is_readable() -> None:
    assert places.escape_path(Path("/mnt/my-cloud ai")) == "mnt-my\\x2dcloud\\x20ai"


@given(absolute_paths, absolute_paths)
def test_escaped_paths_are_different_for_different_paths(one: Path, other: Path) -> None:
    assert (places.escape_path(one) == places.escape_path(other)) == (one == other)


@given(absolute_paths)
def test_escaped_path_is_a_file_name(path: Path) -> None:
    escaped = places.escape_path(path)
    assert 0 < len(os.fsencode(escaped)) <= 200
    assert "/" not in escaped


def test_root_follows_the_hierarchy_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.mount_state_dir(Path("/mnt/cloudai")) == Path("/var/lib/cloudai/mounts/mnt-cloudai")
    assert places.cache_home() == Path("/var/cache/cloudai")


def test_others_follow_xdg_and_ignore_relative_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/user-123")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert places.state_home() == Path("/home/user-123/.local/state/cloudai")
    assert places.cache_home() == Path("/fast/cloudai")


def test_private_dirs_are_private_all_the_way(tmp_path: Path) -> None:
    places.make_private_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700

"""Names, paths and the managed levels: what is accepted goes through unchanged, everything else is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudai_model.errors import InvalidName, InvalidRequest, InvalidRunName, NameTooLong
from cloudai_model.limits import NODE_ID_MAX, NODE_ID_MIN
from cloudai_model.names import (
    check_managed_name,
    check_name,
    check_node_id,
    check_run_name,
    check_symlink_target,
    check_task_id,
    name_run,
    split_path,
)

GOOD_NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
)


@given(st.lists(GOOD_NAMES, min_size=1, max_size=10))
def test_splitting_is_the_inverse_of_joining(components: list[bytes]) -> None:
    assert split_path(b"/".join(components)) == components


@given(st.binary(max_size=300))
def test_what_splits_joins_to_the_same_path_and_has_good_names_alone(path: bytes) -> None:
    try:
        components = split_path(path)
    except InvalidRequest:
        return
    assert b"/".join(components) == path
    for component in components:
        check_name(component)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b"])
def test_name_that_linux_refuses_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("name", [b"...", b".hidden", b" ", b"\n", b"\xff\xfe", b"-rf", b"a" * 255])
def test_odd_name_that_linux_takes_is_taken(name: bytes) -> None:
    check_name(name)


def test_name_of_256_bytes_is_too_long() -> None:
    with pytest.raises(NameTooLong):
        check_name(b"a" * 256)


@pytest.mark.parametrize("path", [b"", b"/", b"/a", b"a/", b"a//b", b"./a", b"a/../b", b"..", b"a/.", b"a\0"])
def test_absolute_or_escaping_path_is_refused(path: bytes) -> None:
    with pytest.raises(InvalidName):
        split_path(path)


def test_path_may_have_256_components_and_no_more() -> None:
    assert len(split_path(b"/".join([b"d"] * 256))) == 256
    with pytest.raises(NameTooLong):
        split_path(b"/".join([b"d"] * 257))


def test_path_may_have_8191_bytes_and_no_more() -> None:
    longest = b"/".join([b"n" * 255] * 32)
    assert len(longest) == 8191
    assert len(split_path(longest)) == 32
    with pytest.raises(NameTooLong):
        split_path(longest + b"n")


@given(st.binary(min_size=1, max_size=4095).filter(lambda target: b"\0" not in target))
def test_any_bytes_without_nul_are_a_symlinks_target(target: bytes) -> None:
    check_symlink_target(target)


@pytest.mark.parametrize(
    ("target", "error"), [(b"", InvalidName), (b"a\0", InvalidName), (b"a" * 4096, NameTooLong)]
)
def test_target_that_symlink_refuses_is_refused(target: bytes, error: type[InvalidRequest]) -> None:
    with pytest.raises(error):
        check_symlink_target(target)


@given(
    st.datetimes(
        min_value=datetime(1000, 1, 2),
        max_value=datetime(9999, 12, 30),
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    )
)
def test_name_of_any_moment_is_a_run_name_and_tells_its_second(moment: datetime) -> None:
    name = name_run(moment)

    check_run_name(name)
    told = datetime.strptime(name, "%Y-%m-%d_%H-%M-%S").replace(tzinfo=UTC)
    assert timedelta(0) <= moment - told < timedelta(seconds=1)


def test_run_is_named_by_utc() -> None:
    moment = datetime(2026, 11, 20, 17, 4, 5, 999_999, timezone(timedelta(hours=2)))

    assert name_run(moment) == "2026-11-20_15-04-05"


def test_moment_without_a_time_zone_names_no_run() -> None:
    with pytest.raises(ValueError, match="time zone"):
        name_run(datetime(2026, 11, 20))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "latest",
        "2026-11-20",
        "2026-11-20 15:04:05",
        "2026-11-20_15-04-05 ",
        "2026-11-20_15-04-05\n",
        "2026-13-01_00-00-00",
        "2026-02-29_00-00-00",
        "2026-11-20_24-00-00",
        "2026-11-20_15-04-60",
        "0000-01-01_00-00-00",
        "２026-11-20_15-04-05",
        "../11-20_15-04-05-x",
    ],
)
def test_what_is_no_time_is_no_run_name(name: str) -> None:
    with pytest.raises(InvalidRunName):
        check_run_name(name)


@given(st.text(max_size=25))
def test_text_is_a_run_name_only_where_it_is_the_name_of_its_moment(name: str) -> None:
    try:
        check_run_name(name)
    except InvalidRunName:
        return
    assert name_run(datetime.strptime(name, "%Y-%m-%d_%H-%M-%S").replace(tzinfo=UTC)) == name


@pytest.mark.parametrize("name", ["user-123", "ml training", "Größe", "実験", "a.b", "x" * 255])
def test_readable_text_names_a_user_or_task(name: str) -> None:
    check_managed_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".git", ".Trash-1000", "latest", "a/b", "a\0", "a\nb", "a\x1b"]
)
def test_hidden_reserved_or_unprintable_text_names_none(name: str) -> None:
    with pytest.raises(InvalidName):
        check_managed_name(name)


def test_surrogate_of_a_name_that_was_no_utf_8_is_refused_before_it_is_encoded() -> None:
    with pytest.raises(InvalidName):
        check_managed_name(b"\xff".decode(errors="surrogateescape"))


def test_managed_name_is_measured_in_bytes() -> None:
    with pytest.raises(NameTooLong):
        check_managed_name("ü" * 128)


@pytest.mark.parametrize("task_id", ["a", "7", "A-b_c.9", "x" * 128])
def test_task_id_of_letters_digits_and_dots_is_taken(task_id: str) -> None:
    check_task_id(task_id)


@pytest.mark.parametrize("task_id", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "ü", "x" * 129])
def test_task_id_that_is_no_safe_file_name_is_refused(task_id: str) -> None:
    with pytest.raises(InvalidRequest):
        check_task_id(task_id)


@pytest.mark.parametrize("node_id", [NODE_ID_MIN, NODE_ID_MAX])
def test_node_ids_limits_are_node_ids(node_id: int) -> None:
    check_node_id(node_id)


@pytest.mark.parametrize("node_id", [-1, 0, 1, NODE_ID_MIN - 1, NODE_ID_MAX + 1, (1 << 64) - 1])
def test_node_id_out_of_range_is_refused(node_id: int) -> None:
    with pytest.raises(InvalidRequest):
        check_node_id(node_id)

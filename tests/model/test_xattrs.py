from __future__ import annotations

import pytest

from cloudai_model.errors import InvalidName, NameTooLong
from cloudai_model.xattrs import check_xattr_name, xattrs_size_bytes


@pytest.mark.parametrize("name", [b"user.a", b"user..", b"user.\xff\n", b"user." + b"n" * 250])
def test_name_of_the_user_namespace_is_accepted(name: bytes) -> None:
    check_xattr_name(name)


@pytest.mark.parametrize("name", [b"", b"user", b"user.", b"USER.a", b"trusted.a", b"a", b"user.a\0b"])
def test_what_is_no_name_of_the_user_namespace_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidName):
        check_xattr_name(name)


def test_name_over_255_bytes_is_too_long() -> None:
    with pytest.raises(NameTooLong):
        check_xattr_name(b"user." + b"n" * 251)


def test_names_and_values_count() -> None:
    assert xattrs_size_bytes({}) == 0
    assert xattrs_size_bytes({b"user.a": b"", b"user.bc": b"123"}) == 6 + 7 + 3

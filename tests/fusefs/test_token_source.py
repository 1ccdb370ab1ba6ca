from __future__ import annotations

import pytest
import trio

from cloudai_fusefs.token_source import TokenSource
from cloudai_model.errors import Unauthenticated


def source_of(*tokens: str | Exception) -> tuple[TokenSource, list[str]]:
    """A source that reads these one after another; what is left of them."""
    left = list(tokens)

    def read() -> str:
        token = left.pop(0)
        if isinstance(token, Exception):
            raise token
        return token

    return TokenSource(read), left  # type: ignore[return-value]


async def test_token_is_read_once() -> None:
    source, left = source_of("first", "second")
    assert [await source.current() for _ in range(3)] == ["first"] * 3
    assert left == ["second"]


async def test_those_who_ask_together_are_one_reading() -> None:
    source, left = source_of("first", "second")
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(source.current)
    assert left == ["second"]


async def test_calls_that_are_refused_one_after_another_all_get_the_new_token() -> None:
    source, left = source_of("old", "new", "newer")
    refused = await source.current()
    assert [await source.another_than(refused) for _ in range(3)] == ["new"] * 3
    assert left == ["newer"]
    assert await source.current() == "new"


async def test_same_token_again_is_no_other() -> None:
    source, _ = source_of("old", "old", "new")
    refused = await source.current()
    assert await source.another_than(refused) is None
    assert await source.another_than(refused) == "new"


async def test_token_that_cannot_be_read_is_a_refusal_and_no_missing_file() -> None:
    gone = FileNotFoundError(2, "No such file or directory", "/etc/token")
    source, _ = source_of(gone, "old", gone, "new")
    with pytest.raises(Unauthenticated, match=r"the token cannot be read.*/etc/token.*No such file"):
        await source.current()
    refused = await source.current()
    with pytest.raises(Unauthenticated, match="the token cannot be read"):
        await source.another_than(refused)
    assert await source.another_than(refused) == "new"


@pytest.mark.parametrize(
    "found", ["two\nlines", "né", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")]
)
async def test_what_is_no_token_is_not_sent(found: str | Exception) -> None:
    source, _ = source_of(found, "good")
    with pytest.raises(Unauthenticated):
        await source.current()
    assert await source.current() == "good"

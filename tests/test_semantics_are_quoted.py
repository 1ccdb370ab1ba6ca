"""Each promise of docs/SEMANTICS.md is held by a test that quotes it."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "SEMANTICS.md"


def one_line(text: str) -> str:
    return " ".join(text.split())


def promises() -> dict[str, str]:
    """The numbered sentences by number."""
    items = re.findall(
        r"^\* ([A-Z]\d+)\. (.*?)(?=^\* |^\S|\Z|^$)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    found = {number: one_line(sentence) for number, sentence in items}
    assert len(found) == len(items), "two promises have one number"
    return found


def test_page_has_promises() -> None:
    assert len(promises()) >= 35


def test_each_promise_is_quoted_by_a_test() -> None:
    quoted = one_line(" ".join(path.read_text() for path in TESTS.rglob("test_*.py")))

    unquoted = [number for number, sentence in promises().items() if f"{number}. {sentence}" not in quoted]

    assert unquoted == []

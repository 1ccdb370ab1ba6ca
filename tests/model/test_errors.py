"""The tree of errors: one word on the wire for each class, and texts that say what happened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudai_fusefs.wire_errors import error_from_detail
from cloudai_model import errors
from cloudai_model.errors import ERROR_BY_REASON, CloudAIError, MissingChunks, NotFound
from cloudai_proto.storage.v1 import types_pb2 as types


def classes_of_the_model(root: type[CloudAIError] = CloudAIError) -> Iterator[type[CloudAIError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
        yield from classes_of_the_model(child)


def test_each_class_has_a_reason_of_its_own() -> None:
    classes = list(classes_of_the_model())

    assert len(classes) >= 25
    assert {error.reason for error in classes} == set(ERROR_BY_REASON)
    assert len(ERROR_BY_REASON) == len(classes)


def test_each_reason_is_spelled_as_on_the_wire() -> None:
    assert [reason for reason in ERROR_BY_REASON if not reason.replace("_", "").isupper()] == []


@pytest.mark.parametrize("reason", sorted(ERROR_BY_REASON))
def test_reason_stands_for_its_class_at_the_other_end(reason: str) -> None:
    error = error_from_detail(types.ErrorDetail(reason=reason, message="why"))

    assert type(error) is ERROR_BY_REASON[reason]
    assert "why" in str(error)


@pytest.mark.parametrize("error", list(classes_of_the_model()))
def test_each_class_says_what_happened(error: type[CloudAIError]) -> None:
    assert error.sentence != CloudAIError.sentence


def test_text_is_made_of_sentence_detail_and_fields() -> None:
    assert str(NotFound("no such run", path="a/b", count=3)) == "not found: no such run: path='a/b', count=3"
    assert str(NotFound()) == "not found"


def test_missing_digests_are_carried_beside_the_text() -> None:
    error = MissingChunks(digests=(b"\1" * 32,))

    assert error.digests == (b"\1" * 32,)
    assert str(error) == "chunks are missing"

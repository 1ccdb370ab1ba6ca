"""Request ids: a call that is repeated changes nothing and gets the same answer again, for a day."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy import bindparam, delete, insert, select

from cloudai_master.authorization import Caller
from cloudai_master.database import Transaction
from cloudai_master.schema import requests
from cloudai_model.chunks import digest_of
from cloudai_model.errors import InvalidRequest
from cloudai_model.limits import REQUEST_ID_BYTES

KEPT_SECONDS: Final = 24 * 3600


_FIND_ANSWER: Final = select(requests.c.fingerprint, requests.c.response).where(
    requests.c.user_name == bindparam("user_name"), requests.c.request_id == bindparam("request_id")
)
_ADD_ANSWER: Final = insert(requests)


class MutatingRequest(Protocol):
    """Any request message with a request id."""

    request_id: bytes

    def SerializeToString(self) -> bytes: ...  # noqa: N802 (protobuf's name)


ResponseT = TypeVar("ResponseT", bound=Message)


def answer_once(
    transaction: Transaction,
    caller: Caller,
    request: MutatingRequest,
    response_type: type[ResponseT],
    carry_out: Callable[[], ResponseT],
    *,
    is_final: Callable[[ResponseT], bool] = lambda _: True,
) -> ResponseT:
    """What `carry_out` returns, or returned the first time the caller sent this request.

    An error is not kept, nor an answer that is not final: nothing was changed, so a repetition is a new try.
    Raises InvalidRequest when the id was used for a request that is not this one.
    """
    if len(request.request_id) != REQUEST_ID_BYTES:
        raise InvalidRequest("a request id is 16 bytes", size_bytes=len(request.request_id))
    fingerprint = digest_of(type(request).__name__.encode() + b"\0" + request.SerializeToString())
    known = transaction.connection.execute(
        _FIND_ANSWER, {"user_name": caller.user, "request_id": request.request_id}
    ).first()
    if known is not None:
        if known.fingerprint != fingerprint:
            # To answer as if this had been carried out would lose what it says.
            raise InvalidRequest("the request id was used for another request")
        return response_type.FromString(known.response)
    response = carry_out()
    if is_final(response):
        transaction.connection.execute(
            _ADD_ANSWER,
            {
                "user_name": caller.user,
                "request_id": request.request_id,
                "fingerprint": fingerprint,
                "response": response.SerializeToString(),
                "answered_at_ns": transaction.now_ns,
            },
        )
    return response


def forget_old_requests(transaction: Transaction) -> None:
    """Drops the answers that are older than KEPT_SECONDS."""
    before_ns = transaction.now_ns - KEPT_SECONDS * 1_000_000_000
    transaction.connection.execute(delete(requests).where(requests.c.answered_at_ns < before_ns))

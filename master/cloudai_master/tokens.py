"""Tokens: signed JWTs (HS256) with expiry and scope, made and revoked by the operator; for their runs, by users.

The signing key is a file of the data directory, 0600; the database knows each token's id, never the token.
A token that is expired, forged, unknown or revoked raises Unauthenticated with a text that says which.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import jwt
from cachetools import TTLCache
from sqlalchemy import delete, insert, or_, select, update

from cloudai_master.authorization import Caller, find_run
from cloudai_master.database import Database
from cloudai_master.schema import tokens, users
from cloudai_model.chunks import digest_of
from cloudai_model.errors import InvalidRequest, NotFound, Unauthenticated
from cloudai_model.names import check_managed_name

KEY_BYTES: Final = 32
ISSUER: Final = "cloudai-master"

# How late a revocation may take effect, and for how long a checked token is not checked again.
CHECKED_SECONDS: Final = 1.0
CHECKED_TOKENS_MAX: Final = 4096

# Longer than any token that is made here; what is longer is refused before it is looked at.
TOKEN_CHARACTERS_MAX: Final = 4096

RUN_TOKEN_KEPT_SECONDS: Final = 30 * 86_400
"""How long after its expiry a token that was made with another can still be looked up."""

NS_PER_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """What is known of a token that was made: a row of tokens."""

    token_id: str
    user: str
    admin: bool
    task_id: str
    created_at_ns: int
    expires_at_ns: int
    revoked_at_ns: int | None


def load_key(path: Path) -> bytes:
    """The signing key, made at the first call. Raises OSError; ValueError for a file that is no key."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise ValueError(f"{path} is not a signing key") from None
        return key
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


_CHILD_MARK: Final = "."
"""In the id of a token, behind that of the token which it was made with."""


def _fingerprint(token: str) -> bytes:
    """The digest, so that no cache holds a token."""
    return digest_of(token.encode("utf-8", "surrogatepass"))


class Tokens:
    """Makes, lists, revokes and checks tokens. Blocks on the database; safe for any thread."""

    def __init__(self, database: Database, key: bytes, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._database = database
        self._key = key
        self._clock_ns = clock_ns
        self._checked: TTLCache[bytes, Caller] = TTLCache(CHECKED_TOKENS_MAX, CHECKED_SECONDS)
        self._lock = Lock()

    def create(
        self, user: str, *, valid_seconds: float, admin: bool = False, task_id: str = "", parent_id: str = ""
    ) -> str:
        """A new token, which exists in no other place than the returned text. Makes the user when new.

        Its id begins with that of the token it is made with, if any, which is revoked for both.

        Raises InvalidName for a bad user name, NotFound for a run that is not the user's.
        """
        check_managed_name(user)
        now_ns = self._clock_ns()
        expires_at_ns = now_ns + int(valid_seconds * NS_PER_SECOND)
        token_id = secrets.token_hex(8)
        if parent_id:
            token_id = f"{parent_id}{_CHILD_MARK}{token_id}"
        with self._database.write() as transaction:
            connection = transaction.connection
            if connection.execute(select(users.c.user_key).where(users.c.name == user)).first() is None:
                connection.execute(
                    insert(users).values(name=user, revision=0, used_bytes=0, created_at_ns=now_ns)
                )
            if task_id:
                find_run(connection, Caller(user=user), task_id)
            connection.execute(
                insert(tokens).values(
                    token_id=token_id,
                    user_name=user,
                    admin=admin,
                    task_id=task_id,
                    created_at_ns=now_ns,
                    expires_at_ns=expires_at_ns,
                )
            )
        claims = {
            "iss": ISSUER,
            "sub": user,
            "jti": token_id,
            "iat": now_ns // NS_PER_SECOND,
            "exp": expires_at_ns // NS_PER_SECOND,
            "admin": admin,
            "run": task_id,
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def create_for_run(self, caller: Caller, task_id: str, *, valid_seconds: float) -> tuple[str, int]:
        """A new token of the run's user that is good for this run alone, and until when, at most as the caller's.

        Raises NotFound, InvalidRequest for no time at all; PermissionRefused for a caller that has such a token.
        """
        with self._database.read() as connection:
            user = find_run(connection, caller, task_id).user
        caller.require_whole_user()
        now_ns = self._clock_ns()
        left_seconds = (
            (caller.expires_at_ns - now_ns) / NS_PER_SECOND if caller.expires_at_ns else valid_seconds
        )
        valid_seconds = min(valid_seconds, left_seconds)
        if valid_seconds <= 0:
            raise InvalidRequest("a token has to be valid for some time", task_id=task_id)
        token = self.create(user, valid_seconds=valid_seconds, task_id=task_id, parent_id=caller.token_id)
        return token, self.check(token).expires_at_ns

    def list_all(self) -> list[TokenRecord]:
        """Every token that an operator ever made and every run token that is still known, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(tokens).order_by(tokens.c.created_at_ns)).all()
        return [
            TokenRecord(
                token_id=row.token_id,
                user=row.user_name,
                admin=row.admin,
                task_id=row.task_id,
                created_at_ns=row.created_at_ns,
                expires_at_ns=row.expires_at_ns,
                revoked_at_ns=row.revoked_at_ns,
            )
            for row in rows
        ]

    def revoke(self, token_id: str) -> None:
        """From at most CHECKED_SECONDS on it is refused, and so are those that were made with it.

        Twice is once; raises NotFound for an unknown id.
        """
        with self._database.write() as transaction:
            known = select(tokens.c.token_id).where(tokens.c.token_id == token_id)
            if transaction.connection.execute(known).first() is None:
                raise NotFound("token", token_id=token_id)
            transaction.connection.execute(
                update(tokens)
                .where(
                    or_(
                        tokens.c.token_id == token_id,
                        tokens.c.token_id.startswith(token_id + _CHILD_MARK, autoescape=True),
                    ),
                    tokens.c.revoked_at_ns.is_(None),
                )
                .values(revoked_at_ns=self._clock_ns())
            )

    def forget_expired(self) -> None:
        """Drops the run tokens that have long expired: there is one for each container that ever ran. Those that an
        operator made stay listed.
        """
        before_ns = self._clock_ns() - RUN_TOKEN_KEPT_SECONDS * NS_PER_SECOND
        with self._database.write() as transaction:
            transaction.connection.execute(
                delete(tokens).where(
                    tokens.c.token_id.contains(_CHILD_MARK, autoescape=True),
                    tokens.c.expires_at_ns < before_ns,
                )
            )

    def check(self, token: str) -> Caller:
        """Whom the token speaks for; raises Unauthenticated."""
        caller = self.checked_lately(token)
        if caller is None:
            caller = self._check_now(token)
            with self._lock:
                self._checked[_fingerprint(token)] = caller
        return caller

    def checked_lately(self, token: str) -> Caller | None:
        """As check, without the database: None for a token that it would have to be asked about."""
        with self._lock:
            caller = self._checked.get(_fingerprint(token))
        if caller is not None and caller.expires_at_ns <= self._clock_ns():
            raise Unauthenticated("the token has expired")
        return caller

    def _check_now(self, token: str) -> Caller:
        claims = self._verify(token)
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.token_id == claims["jti"])).first()
        if row is None:
            raise Unauthenticated("the token is not known here")
        if row.revoked_at_ns is not None:
            raise Unauthenticated("the token was revoked", token_id=row.token_id)
        # The row, not the claims: what a token may do is what the operator was told when it was made.
        return Caller(
            user=row.user_name,
            admin=row.admin,
            task_id=row.task_id,
            expires_at_ns=row.expires_at_ns,
            token_id=row.token_id,
        )

    def _verify(self, token: str) -> dict[str, Any]:
        if not token:
            raise Unauthenticated("there is no token")
        if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
            raise Unauthenticated("the token is not one of this master's")
        try:
            return jwt.decode(
                token,
                self._key,
                # One algorithm: a token that names another, "none" among them, is a forgery.
                algorithms=["HS256"],
                issuer=ISSUER,
                options={"require": ["exp", "jti", "sub"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except jwt.InvalidTokenError:
            # `from None`: the library's texts may quote the token.
            raise Unauthenticated("the token is not one of this master's") from None

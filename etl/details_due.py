"""Verbs on `etl_result_details_due`, the results whose own document is to be read: add, claim, lock, retry, done.

Hides how a claim stays ours: `available_at` of a claimed row is the end of its lease, and there is no token. Two
processes that read the same result after a lease has ended save the same, and who comes second finds its row gone.
Every verb takes a connection inside of the caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, tuple_, update

from etl.database import chunks, insert, is_one_of, now
from etl.tables import etl_result_details_due

_d = etl_result_details_due.c


@dataclass(frozen=True, slots=True)
class Due:
    """A result whose details are to be read, and how often that failed."""

    test_session_id: str
    test_session_result_id: str
    attempts: int


def add(connection: Connection, account_id: str, results: Iterable[tuple[str, str]]) -> None:
    """These results (session and result) are to be read with this account. Those that wait already go on waiting."""
    statement = insert(connection, etl_result_details_due).on_conflict_do_nothing()
    same = {"account_id": account_id, "attempts": 0, "available_at": now(connection)}
    rows = [
        {"test_session_id": test_session_id, "test_session_result_id": result_id, **same}
        for test_session_id, result_id in sorted(results)
    ]
    for some in chunks(rows, 1000):
        connection.execute(statement, list(some))


def claim(
    connection: Connection, account_id: str, *, limit: int, lease: timedelta, only: Collection[str] | None = None
) -> list[Due]:
    """Take up to `limit` due rows of the account, first come, first served; `only` of these sessions, if given.

    Rows that another process is taking are skipped, not waited for.
    """
    due = (
        select(_d.test_session_id, _d.test_session_result_id, _d.attempts)
        .where(_are_due(connection, account_id, only))
        .order_by(_d.available_at, _d.test_session_id, _d.test_session_result_id)
        .limit(limit)
        .with_for_update(skip_locked=True)  # SQLite renders nothing: BEGIN IMMEDIATE is its lock
    )
    found = [Due(*row) for row in connection.execute(due)]
    _update(connection, found, {"available_at": now(connection) + lease})
    return found


def count_due(connection: Connection, account_id: str, *, only: Collection[str] | None = None) -> int:
    """Rows that such a claim could take now."""
    query = select(func.count()).select_from(etl_result_details_due).where(_are_due(connection, account_id, only))
    return connection.execute(query).scalar_one()


def _are_due(connection: Connection, account_id: str, only: Collection[str] | None) -> ColumnElement[bool]:
    due = and_(_d.account_id == account_id, _d.available_at <= now(connection))
    return due if only is None else and_(due, is_one_of(connection, _d.test_session_id, only))


def lock(connection: Connection, dues: Iterable[Due]) -> set[str]:
    """Lock the rows, in key order; returns the results that are still due. Who read the others, saved them."""
    locked: set[str] = set()
    for some in chunks(sorted(dues, key=_key)):
        query = select(_d.test_session_result_id).where(_are(some)).order_by(*etl_result_details_due.primary_key)
        locked.update(connection.execute(query.with_for_update()).scalars())
    return locked


def done(connection: Connection, dues: Iterable[Due]) -> None:
    """Read, or given up: nothing is left to do. For rows that `lock` has locked."""
    for some in chunks(sorted(dues, key=_key)):
        connection.execute(delete(etl_result_details_due).where(_are(some)))


def retry(connection: Connection, dues: Sequence[Due], available_at: datetime) -> None:
    """Failed: again at the given time. For rows that `lock` has locked."""
    _update(connection, dues, {"attempts": _d.attempts + 1, "available_at": available_at})


def release(connection: Connection, dues: Sequence[Due]) -> None:
    """Give claims back as they were, unblamed and due."""
    lock(connection, dues)
    _update(connection, dues, {"available_at": now(connection)})


def is_left(connection: Connection, test_session_id: str) -> bool:
    """Whether results of the session are due that nobody has in hand."""
    left = select(_d.attempts).where(_d.test_session_id == test_session_id, _d.available_at <= now(connection))
    return connection.execute(left.limit(1)).first() is not None


def forget_future(connection: Connection) -> None:
    """The clock was set back: what waits is due now."""
    moment = now(connection)
    ahead = select(_d.test_session_id, _d.test_session_result_id, _d.attempts).where(_d.available_at > moment)
    found = [Due(*row) for row in connection.execute(ahead)]
    lock(connection, found)
    _update(connection, found, {"available_at": moment})


def count(connection: Connection) -> int:
    """How many results are still to be read, of all accounts."""
    return connection.execute(select(func.count()).select_from(etl_result_details_due)).scalar_one()


def _update(connection: Connection, dues: Sequence[Due], values: dict[str, Any]) -> None:
    for some in chunks(dues):
        connection.execute(update(etl_result_details_due).where(_are(some)).values(values))


def _are(dues: Iterable[Due]) -> ColumnElement[bool]:
    return tuple_(_d.test_session_id, _d.test_session_result_id).in_([_key(due) for due in dues])


def _key(due: Due) -> tuple[str, str]:
    return due.test_session_id, due.test_session_result_id

"""Verbs on `etl_inboxes` and `etl_inbox_rejects`: who reads an inbox, how far, and what held no id.

Hides the lease by which one process at a time reads an inbox: the next one finds everything that a dead one left.
Every verb takes a connection inside of the caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, true, update

from etl import process
from etl.database import chunks, insert, now
from etl.documents import storable
from etl.tables import etl_inbox_rejects, etl_inboxes

LONGEST_REJECT = 64_000  # characters
REJECTS_KEPT = 1000

_i = etl_inboxes.c
_r = etl_inbox_rejects.c


@dataclass(frozen=True, slots=True)
class Reading:
    """The right to read one inbox."""

    inbox: str
    token: str
    position: str | None


def begin(connection: Connection, inbox: str, lease: timedelta) -> Reading | None:
    """Take an inbox; None if another process reads it."""
    moment, token = now(connection), str(uuid4())
    connection.execute(insert(connection, etl_inboxes).values(inbox=inbox).on_conflict_do_nothing())
    row = connection.execute(select(_i.position, _i.reader_process).where(_i.inbox == inbox).with_for_update()).one()
    # A lease that ends later than any can was written before the clock was set back.
    free: ColumnElement[bool] = or_(
        _i.reader_token.is_(None), _i.reader_leased_until <= moment, _i.reader_leased_until > moment + lease
    )
    if row.reader_process is not None and process.has_died(row.reader_process):
        free = true()
    taken = connection.execute(
        update(etl_inboxes)
        .where(_i.inbox == inbox, free)
        .values(reader_token=token, reader_process=process.NAME, reader_leased_until=moment + lease)
    )
    return Reading(inbox, token, row.position) if taken.rowcount else None


def received(connection: Connection, reading: Reading, position: str | None, lease: timedelta) -> bool:
    """A batch came; locks the row. False if the inbox is no longer ours: then nothing of the batch may be kept."""
    moment = now(connection)
    values: dict[str, Any] = {"reader_leased_until": moment + lease, "last_received_at": moment}
    if position is not None:
        values["position"] = position
    return _if_ours(connection, reading, values)


def end(connection: Connection, reading: Reading, *, error: str | None) -> None:
    """Give the inbox back; `error` says why it could not be read to its end."""
    values: dict[str, Any] = dict.fromkeys(("reader_token", "reader_process", "reader_leased_until"))
    values["last_error"] = error
    if error is None:
        values["last_read_at"] = now(connection)
    _if_ours(connection, reading, values)


def reject(connection: Connection, inbox: str, texts: Sequence[str]) -> None:
    """Keep messages without an id; one that comes again is kept once, and of all the newest thousand."""
    moment = now(connection)
    found = {sha256(text.encode("utf-8", "surrogatepass")).hexdigest(): text for text in texts}
    rows = [
        {"inbox": inbox, "sha256": digest, "received_at": moment, "text": storable(text[:LONGEST_REJECT])}
        for digest, text in sorted(found.items())
    ]
    if not rows:
        return
    for some in chunks(rows):
        connection.execute(insert(connection, etl_inbox_rejects).on_conflict_do_nothing(), list(some))
    forgotten = (
        select(_r.inbox, _r.sha256)
        .order_by(_r.received_at.desc(), _r.inbox, _r.sha256)
        .offset(REJECTS_KEPT)
        .with_for_update(skip_locked=True)
    )
    for row in connection.execute(forgotten).all():
        connection.execute(delete(etl_inbox_rejects).where(_r.inbox == row.inbox, _r.sha256 == row.sha256))


def states(connection: Connection, inboxes: Collection[str]) -> list[dict[str, Any]]:
    """Each of the inboxes with what was rejected of it, for people."""
    counts = select(_r.inbox, func.count().label("rejects")).group_by(_r.inbox).subquery()
    query = (
        select(
            _i.inbox,
            _i.last_read_at,
            _i.last_received_at,
            _i.last_error,
            func.coalesce(counts.c.rejects, 0).label("rejects"),
        )
        .join_from(etl_inboxes, counts, counts.c.inbox == _i.inbox, isouter=True)
        .where(_i.inbox.in_(inboxes))
        .order_by(_i.inbox)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def rejects(connection: Connection, limit: int = 20) -> list[dict[str, Any]]:
    """What held no id, newest first."""
    query = select(_r.inbox, _r.received_at, _r.text).order_by(_r.received_at.desc(), _r.sha256).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def count_rejects(connection: Connection) -> int:
    """How many of these are kept."""
    return connection.execute(select(func.count()).select_from(etl_inbox_rejects)).scalar_one()


def _if_ours(connection: Connection, reading: Reading, values: dict[str, Any]) -> bool:
    ours = and_(_i.inbox == reading.inbox, _i.reader_token == reading.token)
    return connection.execute(update(etl_inboxes).where(ours).values(values)).rowcount == 1

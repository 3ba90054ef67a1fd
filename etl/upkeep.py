"""What leaves the warehouse: old payloads and runs by `prune`, one test session for good by `forget`.

Hides what hangs on what. Every verb takes a connection inside of the caller's transaction and never commits; `prune`
deletes a bounded batch, so that a large warehouse is never locked for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, literal, or_, select, tuple_

from etl.documents import ERROR_GROUP
from etl.tables import (
    error_groups,
    etl_inbox_rejects,
    etl_payloads,
    etl_queue,
    etl_result_details_due,
    etl_runs,
    test_session_error_groups,
    test_session_result_error_groups,
    test_sessions,
)

PRUNE_BATCH = 1000

_p = etl_payloads.c


# --- prune --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prunable:
    """A table of which old rows may go: which time makes them old, and which of them stay all the same."""

    name: str
    table: Table
    time: Any
    unless: ColumnElement[bool] | None = None


# The document of a dead letter is the only copy of what it says: `replay` of a later release may read it.
_IS_DEAD = exists().where(etl_queue.c.test_session_id == _p.test_session_id, etl_queue.c.state == "dead")
PRUNABLES = (
    Prunable("payloads", etl_payloads, _p.fetched_at, _IS_DEAD),
    Prunable("runs", etl_runs, etl_runs.c.started_at, etl_runs.c.outcome.is_(None)),
    Prunable("inbox_rejects", etl_inbox_rejects, etl_inbox_rejects.c.received_at),
)


def count_prunable(connection: Connection, what: Prunable, before: datetime) -> int:
    """How many rows `prune` would delete."""
    return connection.execute(select(func.count()).select_from(what.table).where(_is_old(what, before))).scalar_one()


def prune(
    connection: Connection, what: Prunable, before: datetime, *, after: tuple[Any, ...] | None
) -> tuple[int, tuple[Any, ...] | None]:
    """Delete the next batch of rows older than `before`, in key order from behind `after`.

    Returns how many, and where to go on; None at the end.
    """
    keys = list(what.table.primary_key.columns)
    query = select(*keys).where(_is_old(what, before)).order_by(*keys).limit(PRUNE_BATCH)
    if after is not None:
        behind = [literal(value, type_=key.type) for key, value in zip(keys, after, strict=True)]
        query = query.where(tuple_(*keys) > tuple_(*behind))
    found = [tuple(row) for row in connection.execute(query.with_for_update(skip_locked=True))]
    if found:
        connection.execute(delete(what.table).where(tuple_(*keys).in_(found)))
    return len(found), found[-1] if len(found) == PRUNE_BATCH else None


def _is_old(what: Prunable, before: datetime) -> ColumnElement[bool]:
    is_old: ColumnElement[bool] = what.time < before
    return is_old if what.unless is None else and_(is_old, ~what.unless)


# --- forget -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Forgotten:
    """What was deleted. `payloads` counts those of error groups, too."""

    test_sessions: int = 0
    payloads: int = 0
    error_groups: list[str] = field(default_factory=list)


def forget_test_session(connection: Connection, test_session_id: str) -> Forgotten:
    """Delete all that is held of a test session: rows, links, payloads.

    Error groups that no other session refers to go with it, for their messages are this session's. The caller has
    shut the session out of the queue (`session_queue.shut_out`) in the same transaction: nobody brings it back.
    """
    connection.execute(
        select(test_sessions.c.test_session_id)
        .where(test_sessions.c.test_session_id == test_session_id)
        .with_for_update()
    )
    groups = _groups_of(connection, test_session_id)
    forgotten = Forgotten()
    forgotten.test_sessions = connection.execute(
        delete(test_sessions).where(test_sessions.c.test_session_id == test_session_id)
    ).rowcount  # its children and links go with it (ON DELETE CASCADE)
    connection.execute(
        delete(etl_result_details_due).where(etl_result_details_due.c.test_session_id == test_session_id)
    )
    is_its = or_(
        _p.test_session_id == test_session_id,
        and_(_p.document_id == test_session_id, _p.kind != ERROR_GROUP),
    )
    forgotten.payloads = connection.execute(delete(etl_payloads).where(is_its)).rowcount
    for group in groups:  # in key order, last: shared rows
        locked = select(error_groups.c.error_group_id).where(error_groups.c.error_group_id == group)
        if connection.execute(locked.with_for_update()).first() is None or _is_referred_to(connection, group):
            continue
        connection.execute(delete(error_groups).where(error_groups.c.error_group_id == group))
        forgotten.payloads += connection.execute(
            delete(etl_payloads).where(_p.kind == ERROR_GROUP, _p.document_id == group)
        ).rowcount
        forgotten.error_groups.append(group)
    return forgotten


def _groups_of(connection: Connection, test_session_id: str) -> Sequence[str]:
    links = (test_session_error_groups, test_session_result_error_groups)
    found = {
        group
        for link in links
        for group in connection.execute(
            select(link.c.error_group_id).where(link.c.test_session_id == test_session_id)
        ).scalars()
    }
    return sorted(found)


def _is_referred_to(connection: Connection, group: str) -> bool:
    links = (test_session_error_groups, test_session_result_error_groups)
    return any(
        connection.execute(select(link.c.error_group_id).where(link.c.error_group_id == group).limit(1)).first()
        for link in links
    )

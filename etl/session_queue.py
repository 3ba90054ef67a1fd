"""Verbs on `etl_queue`: enqueue, claim, renew, lock, ack, defer, retry, bury, release; and on dead letters.

Hides how a claim stays ours: a lease (`available_at` of a leased row is its end) and a token. Every verb takes
a connection inside of the caller's transaction and never commits. Every statement that locks several rows
takes them in test_session_id order, so that two workers cannot deadlock.

A batch ends like this: `lock` the claims (those that are no longer ours drop out), save the rows, then `ack`,
`defer`, `retry` or `bury` each, all in one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    text,
    update,
)

from etl import bulk, process
from etl.database import CLOCK_TOLERANCE, chunks, insert, is_one_of, now
from etl.documents import Document, known
from etl.tables import etl_queue, test_sessions

QUEUED, LEASED, DEAD, DISCARDED = "queued", "leased", "dead", "discarded"
DISCOVERY, BACKFILL, ENQUEUE, INBOX, SETTLE = "discovery", "backfill", "enqueue", "inbox", "settle"
# Somebody waits for an enqueued id; retention is after the rest; a backfill yields to both.
PRIORITIES = {ENQUEUE: 10, INBOX: 10, DISCOVERY: 0, SETTLE: 0, BACKFILL: -10}

_LAST_ERROR_LENGTH = 1000
_BEHIND_ALL = 1e13  # seconds, in which `claim_order` is counted: more than any two times lie apart
_UNCLAIMED: dict[str, Any] = {"claim_token": None, "claimed_by": None}
_q = etl_queue.c
_IS_BEHIND = _q.claim_order < -_BEHIND_ALL / 2
_LAST: dict[str, ColumnElement[Any]] = {
    "priority": case((_q.priority > PRIORITIES[DISCOVERY], PRIORITIES[DISCOVERY]), else_=_q.priority),
    "claim_order": case((_IS_BEHIND, _q.claim_order), else_=_q.claim_order - _BEHIND_ALL),
}
# In the index's own words: SQLite does not see through bound parameters that it could use it.
_IN_CLAIM_INDEX = text("etl_queue.state IN ('queued', 'leased')")


@dataclass(frozen=True, slots=True)
class Listed:
    """A list entry as discovery found it."""

    test_session_id: str
    created_at: datetime | None
    summary: Document
    account_id: str | None = None  # the account that it names


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to fetch one test session and to say what became of it, until the lease ends."""

    test_session_id: str
    token: str
    attempts: int
    waiting_since: datetime
    summary: Document | None
    asked_accounts: tuple[str, ...] | None = None  # that do not have it; None: it came with an account

    def asked_with(self, account_id: str) -> tuple[str, ...]:
        """The accounts that do not have it, this one included."""
        return *(self.asked_accounts or ()), account_id


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row that could not be exported, as `dead list` shows it."""

    test_session_id: str
    account_id: str | None
    state: str
    source: str
    attempts: int
    error_kind: str | None
    last_error: str | None
    last_error_at: datetime | None
    enqueued_at: datetime
    session_created_at: datetime | None


# --- in ----------------------------------------------------------------------------------------------------


def enqueue(
    connection: Connection,
    ids: Iterable[str],
    *,
    accounts: Mapping[str, str] | None = None,
    force: bool = False,
    source: str = ENQUEUE,
) -> tuple[int, list[str]]:
    """Queue ids known by nothing but themselves. Returns how many are queued now, and those left discarded.

    `accounts` says which account an id is of, where that is known; the list knows better where it has told. A dead
    row is revived, a waiting one becomes due now; a discarded one only with `force`, which also takes a leased row
    away from its worker, so that what is fetched is fetched from now on.
    """
    ids = sorted(set(ids))
    moment = now(connection)
    rows: dict[str, Any] = {}
    # All locks before the first insert: two that bring the same new ids could otherwise wait for each other.
    for some in chunks(ids):
        rows |= _lock_rows(connection, some)
    refused = [id_ for id_, row in rows.items() if row.state == DISCARDED and not force]
    again = [id_ for id_, row in rows.items() if force or row.state not in (DISCARDED, LEASED)]
    for some in chunks(again):
        _make_due(connection, some, moment, {"priority": PRIORITIES[source]})
    accounts = accounts or {}
    for id_ in again:
        if id_ in accounts and rows[id_].summary_sha256 is None:
            named = {"account_id": accounts[id_], "asked_accounts": None}
            connection.execute(update(etl_queue).where(_q.test_session_id == id_).values(named))
    new = [_new_row(id_, moment, source=source) for id_ in ids if id_ not in rows]
    for row in new:
        row["account_id"] = accounts.get(row["test_session_id"])
        row["asked_accounts"] = "" if row["account_id"] is None else None
    _insert(connection, new)
    return len(ids) - len(refused), refused


def enqueue_listed(
    connection: Connection,
    entries: Sequence[Listed],
    *,
    account_id: str,
    source: str,
    others: Collection[str] = (),
    newest_first: bool = False,
    force: bool = False,
) -> int:
    """Queue list entries that are new or have changed (by hash); with `force` every one. Returns how many.

    A leased row whose entry changed loses its token: what its worker fetched may be older than the change. An entry
    that names one of the `others`, accounts that are exported as well, is that account's: it is queued for it if
    nothing is known of it yet, and its own list tells of changes.
    """
    moment = now(connection)
    entries = sorted({entry.test_session_id: entry for entry in entries}.values(), key=lambda e: e.test_session_id)
    queued = 0
    for some in chunks(entries):
        ids = [entry.test_session_id for entry in some]
        rows = _lock_rows(connection, ids)
        saved = _saved_summaries(connection, ids)
        new: list[dict[str, Any]] = []
        for entry in some:
            row = rows.get(entry.test_session_id)
            is_foreign = entry.account_id in others
            if is_foreign and (row is not None or entry.test_session_id in saved):
                continue
            if not _is_wanted(entry, row, saved, force):
                continue
            if row is not None:
                values = {
                    "account_id": account_id,
                    "asked_accounts": None,
                    "session_created_at": entry.created_at,
                    "summary": entry.summary.text,
                    "summary_sha256": entry.summary.sha256,
                }
                _make_due(connection, [entry.test_session_id], moment, values)
            else:
                row_values = _new_row(entry.test_session_id, moment, source=source, entry=entry)
                row_values["account_id"] = entry.account_id if is_foreign else account_id
                if newest_first:
                    row_values["claim_order"] = -row_values["claim_order"]
                new.append(row_values)
            queued += 1
        _insert(connection, new)
    return queued


def count_wanted(connection: Connection, entries: Sequence[Listed], *, force: bool = False) -> int:
    """How many of the entries, each of another id, `enqueue_listed` would queue, without doing it."""
    count = 0
    for some in chunks(entries):
        ids = [entry.test_session_id for entry in some]
        known_rows = select(_q.test_session_id, _q.state, _q.summary_sha256).where(_ids(connection, ids))
        rows = {row.test_session_id: row for row in connection.execute(known_rows)}
        saved = _saved_summaries(connection, ids)
        count += sum(_is_wanted(entry, rows.get(entry.test_session_id), saved, force) for entry in some)
    return count


def _is_wanted(entry: Listed, row: Any, saved: Mapping[str, str | None], force: bool) -> bool:
    """Whether a list entry is to be fetched, given its row of the queue (or None) and the hashes of saved entries."""
    if row is not None and row.state == DISCARDED:
        return False
    known_digest = saved.get(entry.test_session_id) if row is None else row.summary_sha256
    return force or known_digest != entry.summary.sha256


def _saved_summaries(connection: Connection, ids: Collection[str]) -> dict[str, str | None]:
    c = test_sessions.c
    query = select(c.test_session_id, c.summary_sha256).where(is_one_of(connection, c.test_session_id, ids))
    return dict(connection.execute(query).all())


def _new_row(id_: str, moment: datetime, *, source: str, entry: Listed | None = None) -> dict[str, Any]:
    created_at = entry.created_at if entry else None
    return {
        "test_session_id": id_,
        "account_id": None,
        "state": QUEUED,
        "priority": PRIORITIES[source],
        "claim_order": -(created_at or moment).timestamp(),
        "source": source,
        "attempts": 0,
        "available_at": moment,
        "enqueued_at": moment,
        "session_created_at": created_at,
        "summary": entry.summary.text if entry else None,
        "summary_sha256": entry.summary.sha256 if entry else None,
        "asked_accounts": None,
    }


def _insert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    # Another process may have queued the same id since we looked: it is queued, and that is what we want.
    bulk.insert_or_keep(connection, etl_queue, rows)


def _make_due(connection: Connection, ids: Sequence[str], moment: datetime, values: Mapping[str, Any]) -> None:
    if not ids:
        return
    due = {"state": QUEUED, "available_at": moment, "attempts": 0, **_UNCLAIMED, **values}
    # What is revived has not been waiting since it was first queued: a RUNNING one is read until it is final.
    is_revived = _q.state.in_((DEAD, DISCARDED))
    anew = case((is_revived, literal(moment, _q.enqueued_at.type)), else_=_q.enqueued_at)
    due = {**_asked_of_nobody(is_revived), "enqueued_at": anew, **due}
    connection.execute(update(etl_queue).where(_ids(connection, ids)).values(due))


def _asked_of_nobody(is_meant: ColumnElement[bool]) -> dict[str, Any]:
    """Ids that named no account begin with the default one again: what it did not have, it may have by now."""
    is_bare = is_meant & _q.asked_accounts.is_not(None)
    return {
        "account_id": case((is_bare, null()), else_=_q.account_id),
        "asked_accounts": case((is_bare, ""), else_=_q.asked_accounts),
    }


# --- claims -------------------------------------------------------------------------------------------------


def claim(
    connection: Connection,
    *,
    account_id: str,
    limit: int,
    lease: timedelta,
    is_default: bool,
    only: Collection[str] | None = None,
) -> list[Claim]:
    """Take up to `limit` due rows of the account, in order; with `is_default` also those of no account.

    `only` leaves all others alone (at most as many as a statement takes parameters).

    On PostgreSQL rows that another worker is taking are skipped, not waited for. A row whose lease has expired
    is due again.
    """
    moment = now(connection)
    due = (
        select(_q.test_session_id, _q.attempts, _q.enqueued_at, _q.summary, _q.asked_accounts)
        .where(_IN_CLAIM_INDEX, _q.available_at <= moment, _of_account(account_id, is_default))
        .order_by(_q.priority.desc(), _q.claim_order.desc(), _q.test_session_id.desc())  # the index, backwards
        .limit(limit)
        .with_for_update(skip_locked=True)  # SQLite renders nothing: BEGIN IMMEDIATE is its lock
    )
    rows = connection.execute(due if only is None else due.where(_ids(connection, only))).all()
    if not rows:
        return []
    token = str(uuid4())
    for some in chunks([row.test_session_id for row in rows]):
        connection.execute(
            update(etl_queue)
            .where(_ids(connection, some))
            .values(
                state=LEASED,
                claim_token=token,
                claimed_by=process.NAME,
                available_at=moment + lease,
                account_id=account_id,
            )
        )
    return [
        Claim(
            test_session_id=row.test_session_id,
            token=token,
            attempts=row.attempts,
            waiting_since=row.enqueued_at,
            summary=known(row.summary.encode()) if row.summary is not None else None,
            asked_accounts=None if row.asked_accounts is None else tuple(filter(None, row.asked_accounts.split(","))),
        )
        for row in rows
    ]


def renew(connection: Connection, claims: Iterable[Claim], lease: timedelta) -> set[str]:
    """Push the end of the leases that are still ours; returns their ids."""
    moment = now(connection)
    renewed: set[str] = set()
    for ids in _by_token(connection, claims):
        connection.execute(update(etl_queue).where(_ids(connection, ids)).values(available_at=moment + lease))
        renewed.update(ids)
    return renewed


def lock(connection: Connection, claims: Iterable[Claim]) -> set[str]:
    """Lock the claims' rows; returns the ids that are still ours. The others' work must be dropped."""
    return {id_ for ids in _by_token(connection, claims) for id_ in ids}


def release(connection: Connection, claims: Iterable[Claim], *, last: bool = False) -> int:
    """Give claims back as they were, unblamed and due. Returns how many were still ours.

    With `last` what may be at fault: behind all others, so that it cannot hold them up in the next pass, too, until
    it is saved (`defer`). What somebody waits for goes among what was discovered.
    """
    moment = now(connection)
    count = 0
    for ids in _by_token(connection, claims):
        _free(connection, ids, moment, **(_LAST if last else {}))
        count += len(ids)
    return count


def release_dead(connection: Connection) -> int:
    """Give back what processes of this machine held when they died, without waiting for their leases to end.

    Wrong only where two machines share a name: then a living worker loses its leases, and its work is done again.
    """
    holders = select(_q.claimed_by).where(_q.state == LEASED, _q.claimed_by.is_not(None)).distinct()
    dead = [name for name in connection.execute(holders).scalars() if process.has_died(name)]
    if not dead:
        return 0
    held = select(_q.test_session_id).where(_q.state == LEASED, _q.claimed_by.in_(dead))
    ids = connection.execute(held.order_by(_q.test_session_id).with_for_update()).scalars().all()
    moment = now(connection)
    for some in chunks(ids):
        _free(connection, some, moment)
    return len(ids)


def is_ahead(connection: Connection) -> bool:
    """Whether a row was queued at a time that is still to come: the clock was set back."""
    ahead = select(_q.test_session_id).where(_q.enqueued_at > now(connection) + CLOCK_TOLERANCE).limit(1)
    return connection.execute(ahead).first() is not None


def forget_future(connection: Connection, lease: timedelta) -> None:
    """The clock was set back: what waits is read now, and leases that end later than any lease can are over."""
    moment = now(connection)
    is_ahead = or_(
        and_(_q.state == QUEUED, _q.available_at > moment), and_(_q.state == LEASED, _q.available_at > moment + lease)
    )
    query = select(_q.test_session_id).where(is_ahead).order_by(_q.test_session_id).with_for_update()
    for some in chunks(connection.execute(query).scalars().all()):
        _free(connection, some, moment)
    # How long a row has been waiting is not known any more, of whatever state: from now on.
    query = select(_q.test_session_id).where(_q.enqueued_at > moment).order_by(_q.test_session_id).with_for_update()
    for some in chunks(connection.execute(query).scalars().all()):
        connection.execute(update(etl_queue).where(_ids(connection, some)).values(enqueued_at=moment))


def _free(connection: Connection, ids: Sequence[str], moment: datetime, **more: ColumnElement[Any]) -> None:
    values = {"state": QUEUED, "available_at": moment, **_UNCLAIMED, **more}
    connection.execute(update(etl_queue).where(_ids(connection, ids)).values(values))


def _by_token(connection: Connection, claims: Iterable[Claim]) -> Iterable[list[str]]:
    """The ids that are still ours, locked, in chunks."""
    ordered = sorted(claims, key=lambda claim: claim.test_session_id)
    for some in chunks(ordered):
        rows = _lock_rows(connection, [claim.test_session_id for claim in some])
        ours = [
            claim.test_session_id
            for claim in some
            if (row := rows.get(claim.test_session_id)) is not None and row.claim_token == claim.token
        ]
        if ours:
            yield ours


def _lock_rows(connection: Connection, ids: Collection[str]) -> dict[str, Any]:
    rows = connection.execute(
        select(_q.test_session_id, _q.state, _q.claim_token, _q.summary_sha256)
        .where(_ids(connection, ids))
        .order_by(_q.test_session_id)
        .with_for_update()
    )
    return {row.test_session_id: row for row in rows}


# --- what became of it: only for rows that `lock` returned ----------------------------------------------------


def ack(connection: Connection, ids: Collection[str]) -> None:
    """Done: nothing is left to do for these ids."""
    for some in chunks(sorted(ids)):
        connection.execute(etl_queue.delete().where(_ids(connection, some)))


def defer(connection: Connection, available_at: Mapping[str, datetime], *, source: str | None = None) -> None:
    """Saved, but to be read again at the given time. A success: earlier failures are forgotten."""
    values = {
        "state": QUEUED,
        "attempts": 0,
        "error_kind": None,
        "last_error": None,
        "claim_order": case((_IS_BEHIND, _q.claim_order + _BEHIND_ALL), else_=_q.claim_order),
        **_UNCLAIMED,
    }
    if source is not None:
        values["source"] = source
    _set_each(connection, values, [{"id_": id_, "available_at": at} for id_, at in available_at.items()])


def offer(connection: Connection, offered: Iterable[tuple[Claim, str]], *, asked: str) -> None:
    """Hand each claim to the account that stands with it.

    These ids named no account, and the account `asked` does not have them.
    """
    values = {"state": QUEUED, "attempts": 0, "available_at": now(connection), **_UNCLAIMED}
    rows = [
        {
            "id_": claim.test_session_id,
            "account_id": to,
            "asked_accounts": ",".join(claim.asked_with(asked)),
        }
        for claim, to in offered
    ]
    _set_each(connection, values, rows)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a fetch failed: `kind` is one word (errors.py), `reason` a sentence without secrets."""

    test_session_id: str
    kind: str
    reason: str


def retry(connection: Connection, failures: Mapping[Failure, tuple[int, datetime]]) -> None:
    """Back in the queue with the new count of attempts, until the given time."""
    moment = now(connection)
    _set_each(
        connection,
        {"state": QUEUED, "last_error_at": moment, **_UNCLAIMED},
        [
            {**_said(failure), "attempts": attempts, "available_at": available_at}
            for failure, (attempts, available_at) in failures.items()
        ],
    )


def bury(connection: Connection, failures: Mapping[Failure, int]) -> None:
    """Dead letters, with the count of attempts that they took."""
    moment = now(connection)
    _set_each(
        connection,
        {"state": DEAD, "last_error_at": moment, **_UNCLAIMED},
        [{**_said(failure), "attempts": attempts} for failure, attempts in failures.items()],
    )


def _said(failure: Failure) -> dict[str, Any]:
    return {
        "id_": failure.test_session_id,
        "error_kind": failure.kind,
        "last_error": failure.reason[:_LAST_ERROR_LENGTH],
    }


def _set_each(connection: Connection, same: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    rows.sort(key=lambda row: row["id_"])
    own: dict[str, Any] = {name: bindparam(name) for name in rows[0] if name != "id_"}
    statement = update(etl_queue).where(_q.test_session_id == bindparam("id_")).values({**same, **own})
    connection.execute(statement, rows)


# --- dead letters ---------------------------------------------------------------------------------------------


def dead_letters(
    connection: Connection,
    *,
    ids: Collection[str] | None = None,
    states: Collection[str] = (DEAD,),
    limit: int | None = None,
) -> list[DeadLetter]:
    """Dead letters, oldest first; all of them without `ids`."""
    columns = [_q[name] for name in DeadLetter.__dataclass_fields__]
    query: Select[Any] = (
        select(*columns).where(_q.state.in_(states)).order_by(_q.last_error_at, _q.test_session_id).limit(limit)
    )
    if ids is None:
        found = connection.execute(query).all()
    else:
        found = [
            row for some in chunks(sorted(ids)) for row in connection.execute(query.where(_ids(connection, some)))
        ]
    return [DeadLetter(**row._mapping) for row in found]


def revive(connection: Connection, ids: Collection[str] | None = None) -> int:
    """Queue dead letters again, as if they were new; all of them without `ids`. Returns how many."""
    moment = now(connection)
    anew = {"state": QUEUED, "attempts": 0, "available_at": moment, "enqueued_at": moment}
    return _leave_dead(connection, ids, {**_asked_of_nobody(_q.state == DEAD), **anew})


def discard(connection: Connection, ids: Collection[str] | None = None) -> int:
    """Give dead letters up. The rows stay, so that discovery does not bring them back. Returns how many."""
    return _leave_dead(connection, ids, {"state": DISCARDED})


def shut_out(connection: Connection, test_session_id: str) -> None:
    """Discard an id whatever its state, known or not, and forget its list entry. Its worker loses its claim."""
    _lock_rows(connection, [test_session_id])
    values = {
        **dict.fromkeys(("summary", "summary_sha256", "session_created_at", "error_kind", "last_error")),
        **_UNCLAIMED,
        "state": DISCARDED,
    }
    row = _new_row(test_session_id, now(connection), source=ENQUEUE) | {"state": DISCARDED}
    statement = insert(connection, etl_queue).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=["test_session_id"], set_=values))


def discarded(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of the ids that were given up."""
    given_up = select(_q.test_session_id).where(_q.state == DISCARDED)
    return {
        id_
        for some in chunks(sorted(ids))
        for id_ in connection.execute(given_up.where(_ids(connection, some))).scalars()
    }


def bury_no_more(connection: Connection, ids: Collection[str]) -> None:
    """Forget dead letters whose stored document could be read after all."""
    for some in chunks(sorted(ids)):
        rows = _lock_rows(connection, some)
        dead = [id_ for id_, row in rows.items() if row.state == DEAD]
        connection.execute(etl_queue.delete().where(_ids(connection, dead)))


def _leave_dead(connection: Connection, ids: Collection[str] | None, values: Mapping[str, Any]) -> int:
    query = select(_q.test_session_id).where(_q.state == DEAD).order_by(_q.test_session_id).with_for_update()
    count = 0
    for chosen in [None] if ids is None else [_ids(connection, some) for some in chunks(sorted(ids))]:
        dead = connection.execute(query if chosen is None else query.where(chosen)).scalars().all()
        for some in chunks(dead):
            connection.execute(update(etl_queue).where(_ids(connection, some)).values(values))
        count += len(dead)
    return count


def _ids(connection: Connection, ids: Collection[str]) -> ColumnElement[bool]:
    return is_one_of(connection, _q.test_session_id, ids)


def count_due(
    connection: Connection, account_id: str, *, is_default: bool, only: Collection[str] | None = None
) -> int:
    """Rows that such a claim could take now."""
    due = and_(_IN_CLAIM_INDEX, _q.available_at <= now(connection), _of_account(account_id, is_default))
    if only is not None:
        due = and_(due, _ids(connection, only))
    return connection.execute(select(func.count()).select_from(etl_queue).where(due)).scalar_one()


def _of_account(account_id: str, is_default: bool) -> ColumnElement[bool]:
    of_account = _q.account_id == account_id
    return or_(of_account, _q.account_id.is_(None)) if is_default else of_account


def waiting_rows(connection: Connection, ids: Collection[str], *, account_id: str, is_default: bool) -> Sequence[Any]:
    """test_session_id, state and attempts of the ids that are still to be fetched with this account."""
    query = select(_q.test_session_id, _q.state, _q.attempts).where(
        _ids(connection, ids), _q.state.in_((QUEUED, LEASED)), _of_account(account_id, is_default)
    )
    return connection.execute(query.order_by(_q.test_session_id)).all()


def waiting_for(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """By which account those of the ids that are still to be fetched will be; of some it is not known yet."""
    query = select(_q.test_session_id, _q.account_id).where(
        _ids(connection, ids), _q.state.in_((QUEUED, LEASED)), _q.account_id.is_not(None)
    )
    return dict(connection.execute(query).all())


def count_states(connection: Connection) -> dict[str, int]:
    """Rows by state."""
    rows = connection.execute(select(_q.state, func.count()).group_by(_q.state))
    return dict(rows.all())

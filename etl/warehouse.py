"""Verbs on the warehouse's own tables: save test sessions and error groups, payloads, drift, runs.

Hides how rows get there: upserts, replaced children, the order of writes. Every verb takes a connection inside
of the caller's transaction and never commits. Shared rows (error groups, drift) are written in key order and
last, so that two workers cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from sqlalchemy import (
    Connection,
    LargeBinary,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from etl import bulk, process
from etl.bulk import Row, Rows
from etl.database import CLOCK_TOLERANCE, chunks, drop_afterwards, insert, is_one_of, now
from etl.documents import TEST_SESSION, Document, known
from etl.tables import (
    UtcTime,
    check_executions,
    error_group_environments,
    error_group_playwright_tests,
    error_group_root_cause_analyses,
    error_groups,
    etl_accounts,
    etl_drift,
    etl_payloads,
    etl_queue,
    etl_replay_due,
    etl_runs,
    test_session_error_groups,
    test_session_result_error_groups,
    test_session_results,
    test_sessions,
)

COUNTERS = (
    "test_sessions_saved",
    "test_sessions_unchanged",
    "test_sessions_dead",
    "results_saved",
    "api_requests",
    "api_retries",
    "throttled_ms",
)
RUN_SILENCE = timedelta(days=1)
UNATTENDED = timedelta(days=1)
ERROR_GROUP_MAX_AGE = timedelta(days=1)
LARGE_PAYLOAD = 4_000_000  # bytes: of these, one is in memory at a time
RUNS_KEPT = 1000
DRIFT_KEPT = 1000

DETAIL_COLUMNS = (
    "details_fetched_at",
    "sequence_id",
    "attempts",
    "file_path",
    "private_location_id",
    "over_max_response_time",
    "is_cancelled",
    "schedule_error",
    "trace_id",
)

_s = test_sessions.c
_r = test_session_results.c
_g = error_groups.c


class SessionRows(Protocol):
    """What `save_test_sessions` writes; made by `normalize.normalize_test_session`."""

    test_session: Row
    error_group_ids: list[str] | None
    result_error_groups: list[tuple[str, str]]

    @property
    def results(self) -> Sequence[msgspec.Struct] | None: ...
    @property
    def executions(self) -> Sequence[msgspec.Struct] | None: ...
    @property
    def test_session_id(self) -> str: ...
    @property
    def is_final(self) -> bool: ...


class ErrorGroupRows(Protocol):
    """What `save_error_groups` writes; made by `normalize.normalize_error_group`."""

    error_group: Row
    environments: list[str]
    playwright_tests: list[Row]
    root_cause_analyses: list[Row]


class DriftRows(Protocol):
    """What `save_drift` writes."""

    found: dict[tuple[str, str], tuple[int, str]]


@dataclass(slots=True)
class Saved:
    """What became of the sessions that were to be saved. `changed` were written."""

    changed: set[str] = field(default_factory=set)
    unchanged: set[str] = field(default_factory=set)
    results: int = 0


# --- test sessions ----------------------------------------------------------------------------------------------


def held_columns(connection: Connection, ids: Collection[str], *, lock: bool = False) -> dict[str, Mapping[str, Any]]:
    """The rows of test_sessions that we hold, by id; with `lock` they stay as they are."""
    held: dict[str, Mapping[str, Any]] = {}
    for some in chunks(sorted(ids)):
        query = select(test_sessions).where(is_one_of(connection, _s.test_session_id, some))
        if lock:
            query = query.order_by(_s.test_session_id).with_for_update()
        for row in connection.execute(query).mappings():
            held[row["test_session_id"]] = dict(row)
    return held


def still_held(connection: Connection, batch: Sequence[SessionRows]) -> set[str]:
    """Those of the sessions that we hold with the very hashes of their rows."""
    found: set[str] = set()
    wanted = {rows.test_session_id: rows.test_session for rows in batch}
    for some in chunks(sorted(wanted)):
        query = select(_s.test_session_id, _s.payload_sha256, _s.summary_sha256).where(
            is_one_of(connection, _s.test_session_id, some)
        )
        for id_, payload_sha256, summary_sha256 in connection.execute(query):
            row = wanted[id_]
            if (payload_sha256, summary_sha256) == (row["payload_sha256"], row["summary_sha256"]):
                found.add(id_)
    return found


def save_test_sessions(
    connection: Connection,
    batch: Sequence[SessionRows],
    held: Mapping[str, Mapping[str, Any]],
    *,
    etl_run_id: str | None,
    rewrite: bool = False,
) -> Saved:
    """Save each session as a whole, in the caller's transaction.

    The caller holds the lock on each: `held` is what `held_columns` gave with `lock`. What is not in it must be the
    caller's by a claim, unless it is a `rewrite`.

    - Unchanged (both hashes equal ours): nothing is written, unless `rewrite`.
    - RUNNING where we hold a final one: nothing of it is written.
    - Final: its results, executions and links are replaced. RUNNING: they are added to, none is deleted.
    - `results` None: the stored ones stay.
    """
    saved = Saved()
    moment = now(connection)
    writing: list[SessionRows] = []
    for rows in sorted(batch, key=lambda rows: rows.test_session_id):
        row = held.get(rows.test_session_id)
        same = row is not None and all(
            row[digest] == rows.test_session[digest] for digest in ("payload_sha256", "summary_sha256")
        )
        goes_back = row is not None and row["is_final"] and not rows.is_final
        if (same and not rewrite) or goes_back:
            saved.unchanged.add(rows.test_session_id)
            continue
        writing.append(rows)
        saved.changed.add(rows.test_session_id)
        saved.results += len(rows.results or ())
    if not writing:
        return saved

    stamps = {"first_exported_at": moment, "exported_at": moment, "etl_run_id": etl_run_id}
    bulk.upsert(
        connection,
        test_sessions,
        [{**rows.test_session, **stamps} for rows in writing],
        keep=("first_exported_at",),
    )
    # A replay has no claim: what it found missing, somebody may have saved before we locked it.
    stored = saved.changed if rewrite else held
    _save_children(connection, writing, stored)
    _save_links(connection, writing, stored)
    if not rewrite:
        _mark_stale_groups(connection, writing, moment)
    return saved


def _save_children(connection: Connection, writing: Sequence[SessionRows], stored: Collection[str]) -> None:
    told = [rows for rows in writing if rows.results is not None]
    replaced = [rows for rows in told if rows.test_session_id in stored]
    final = [rows.test_session_id for rows in replaced if rows.is_final]
    running = [rows.test_session_id for rows in replaced if not rows.is_final]
    _delete_of(connection, test_session_results, final)
    _delete_of(connection, check_executions, final + running)
    for some in chunks(running):
        # Rows that this payload no longer holds stay, outside of any execution.
        connection.execute(
            update(test_session_results)
            .where(is_one_of(connection, test_session_results.c.test_session_id, some))
            .values(execution_no=None)
        )
    for_good = [row for rows in told if rows.is_final for row in rows.results or ()]
    for_now = [row for rows in told if not rows.is_final for row in rows.results or ()]
    bulk.insert(connection, test_session_results, for_good)
    bulk.upsert(connection, test_session_results, for_now)
    executions = [row for rows in told for row in rows.executions or ()]
    if connection.dialect.name == "sqlite":
        # For its triggers, SQLite keeps each page that a statement changes as it was, and in most of the indexes the
        # rows of a check are neighbours. (PostgreSQL's BRIN wants those of a session to be.)
        executions.sort(key=attrgetter("check_key", "started_at"))
    bulk.insert(connection, check_executions, executions)


def _save_links(connection: Connection, writing: Sequence[SessionRows], stored: Collection[str]) -> None:
    session_links = [
        {"test_session_id": rows.test_session_id, "error_group_id": group}
        for rows in writing
        for group in rows.error_group_ids or ()
    ]
    result_links = [
        {"test_session_id": rows.test_session_id, "test_session_result_id": result, "error_group_id": group}
        for rows in writing
        for result, group in rows.result_error_groups
    ]
    final = [rows for rows in writing if rows.is_final and rows.test_session_id in stored]
    of_sessions = [rows.test_session_id for rows in final if rows.error_group_ids is not None]
    of_results = [rows.test_session_id for rows in final if rows.results is not None]
    _delete_of(connection, test_session_error_groups, of_sessions)
    _delete_of(connection, test_session_result_error_groups, of_results)
    accounts = {rows.test_session_id: rows.test_session["account_id"] for rows in writing}
    groups: dict[str, Any] = {}
    for link in sorted([*result_links, *session_links], key=lambda link: str(link["test_session_id"])):
        groups.setdefault(link["error_group_id"], accounts[link["test_session_id"]])
    _make_error_groups(connection, groups)
    bulk.insert_or_keep(connection, test_session_error_groups, session_links)
    bulk.insert_or_keep(connection, test_session_result_error_groups, result_links)


def _make_error_groups(connection: Connection, accounts: Mapping[str, Any]) -> None:
    """Rows of error groups (with the account of each) that links may refer to; `forget` beside us deletes none."""
    missing = set(accounts)
    while missing:
        new = [{"error_group_id": group, "account_id": accounts[group]} for group in sorted(missing)]
        bulk.insert_or_keep(connection, error_groups, new)
        # One that was there already is not locked by that, and may be gone again.
        missing -= lock_error_groups(connection, missing)


def _mark_stale_groups(connection: Connection, writing: Sequence[SessionRows], moment: datetime) -> None:
    """Known groups whose copy is older than a session that refers to it, or a day old, are to be read again.

    Noted with the session, so that it is not forgotten when the API is down or the process dies.
    """
    newest: dict[str, datetime] = {}
    for rows in writing:
        started_at = rows.test_session["started_at"]
        for group in {*(rows.error_group_ids or ()), *(group for _, group in rows.result_error_groups)}:
            newest[group] = max(started_at, newest.get(group, started_at))
    # last_seen is null after a 404: gone is gone, until the copy is a day old.
    is_older = or_(
        _g.last_seen < bindparam("started_at", type_=UtcTime), _g.fetched_at <= moment - ERROR_GROUP_MAX_AGE
    )
    may_be_stale = (_g.fetched_at.is_not(None), _g.stale_since.is_(None))
    statement = update(error_groups).where(_g.error_group_id == bindparam("id_"), *may_be_stale, is_older)
    # A look first: most are not known yet, or stale already, and an update of each would take longer.
    some_known = [
        id_
        for some in chunks(sorted(newest))
        for id_ in connection.execute(
            select(_g.error_group_id).where(is_one_of(connection, _g.error_group_id, some), *may_be_stale)
        ).scalars()
    ]
    if some_known:
        each = [{"id_": id_, "started_at": newest[id_]} for id_ in sorted(some_known)]
        connection.execute(statement.values(stale_since=moment), each)


def accept_summary(connection: Connection, digests: Mapping[str, str], *, etl_run_id: str) -> None:
    """Remember list entries whose detail told nothing new (404, or RUNNING again), so that discovery does not
    bring them back in every pass."""
    statement = (
        update(test_sessions)
        .where(_s.test_session_id == bindparam("id_"), _s.summary_sha256.is_distinct_from(bindparam("digest")))
        .values(summary_sha256=bindparam("digest"), exported_at=now(connection), etl_run_id=etl_run_id)
    )
    for id_ in sorted(digests):
        connection.execute(statement, {"id_": id_, "digest": digests[id_]})


def held_results(connection: Connection, test_session_id: str) -> Iterator[Row]:
    """The result rows of a session that stand in an execution, in the payload's order."""
    rows = connection.execute(
        select(test_session_results)
        .where(_r.test_session_id == test_session_id, _r.execution_no.is_not(None))
        .order_by(_r.position)
    )
    return (dict(row) for row in rows.mappings())


def replace_executions(
    connection: Connection, test_session_id: str, executions: Rows, moved: Mapping[str, int]
) -> bool:
    """Replace a session's executions, and the numbers of the results that `moved` from one to another.

    False if they stand there already: then nothing is written.
    """
    stored = connection.execute(
        select(check_executions)
        .where(check_executions.c.test_session_id == test_session_id)
        .order_by(check_executions.c.execution_no)
    )
    if not moved and [dict(row) for row in stored.mappings()] == [bulk.as_row(row) for row in executions]:
        return False
    _update_results(
        connection,
        test_session_id,
        [{"id_": id_, "execution_no": execution_no} for id_, execution_no in moved.items()],
    )
    _delete_of(connection, check_executions, [test_session_id])
    bulk.insert(connection, check_executions, executions)
    return True


def held_details(connection: Connection, ids: Collection[str]) -> dict[str, dict[str, Row]]:
    """The columns of result details that were read: by session, and in it by result."""
    held: dict[str, dict[str, Row]] = {}
    columns = [column for column in _r if column.name in DETAIL_COLUMNS]
    for some in chunks(sorted(ids)):
        query = select(_r.test_session_id, _r.test_session_result_id, *columns)
        query = query.where(is_one_of(connection, _r.test_session_id, some), _r.details_fetched_at.is_not(None))
        for test_session_id, result_id, *values in connection.execute(query):
            told = dict(zip((column.name for column in columns), values, strict=True))
            held.setdefault(test_session_id, {})[result_id] = told
    return held


def save_details(connection: Connection, test_session_id: str, details: Mapping[str, Row]) -> set[str]:
    """Write details (by result) into the session's rows. Returns the results that there are; the others are gone.

    The caller holds the lock on the session.
    """
    there: set[str] = set()
    for some in chunks(sorted(details)):
        query = select(_r.test_session_result_id)
        query = query.where(
            _r.test_session_id == test_session_id, is_one_of(connection, _r.test_session_result_id, some)
        )
        there.update(connection.execute(query).scalars())
    moment = now(connection)
    rows = [{"id_": id_, **details[id_], "details_fetched_at": moment} for id_ in sorted(there)]
    _update_results(connection, test_session_id, rows)
    return there


def _update_results(connection: Connection, test_session_id: str, rows: Sequence[Row]) -> None:
    """Columns of some results of a session; `id_` says which."""
    for some in chunks(rows, 1000):
        statement = (
            update(test_session_results)
            .where(_r.test_session_id == test_session_id, _r.test_session_result_id == bindparam("id_"))
            .values({name: bindparam(name) for name in some[0] if name != "id_"})
        )
        connection.execute(statement, list(some))


def stamp(connection: Connection, test_session_id: str, etl_run_id: str) -> None:
    """A row of the session was written now, by this run."""
    statement = update(test_sessions).where(_s.test_session_id == test_session_id)
    connection.execute(statement.values(exported_at=now(connection), etl_run_id=etl_run_id))


# --- error groups -----------------------------------------------------------------------------------------------


def error_groups_to_fetch(connection: Connection, account_id: str, *, is_default: bool) -> list[str]:
    """Ids of error groups whose document is to be read, in order: those known by id only, and the stale ones.

    With `is_default` also those of accounts that nobody exports from: a list entry may name another account than
    the one whose list it stands in.
    """
    is_wanted = or_(_g.fetched_at.is_(None), _g.stale_since.is_not(None))
    is_ours = or_(_g.account_id == account_id, _g.account_id.is_(None))
    if is_default:
        is_ours = or_(is_ours, ~exists().where(etl_accounts.c.account_id == _g.account_id))
    query = select(_g.error_group_id).where(is_wanted, is_ours)
    return list(connection.execute(query.order_by(_g.error_group_id)).scalars())


def lock_error_groups(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of the error groups that there are; they stay until the transaction ends."""
    there: set[str] = set()
    for some in chunks(sorted(ids)):
        query = (
            select(_g.error_group_id)
            .where(is_one_of(connection, _g.error_group_id, some))
            .order_by(_g.error_group_id)
        )
        there.update(connection.execute(query.with_for_update(read=True, key_share=True)).scalars())
    return there


def count_error_groups(connection: Connection, account_id: str) -> int:
    """How many error groups of the account we know: what listing them all would cost."""
    return connection.execute(select(func.count()).where(_g.account_id == account_id)).scalar_one()


def save_error_groups(
    connection: Connection, batch: Sequence[ErrorGroupRows], *, account_id: str | None, asked_at: datetime | None
) -> None:
    """Replace each group as a whole; its account stays the one that it was first seen in.

    `asked_at` is a time before it was asked for: one that became stale after that stays so. None (replay) leaves
    fetched_at and stale_since as they are.
    """
    if not batch:
        return
    batch = sorted(batch, key=lambda rows: rows.error_group["error_group_id"])
    moment = now(connection)
    ids = [rows.error_group["error_group_id"] for rows in batch]
    bulk.upsert(
        connection,
        error_groups,
        [{**rows.error_group, "account_id": account_id, "fetched_at": moment} for rows in batch],
        keep=("account_id",) if asked_at is not None else ("account_id", "fetched_at"),
    )
    if asked_at is not None:
        _fresh(connection, ids, asked_at)
    for table in (error_group_environments, error_group_playwright_tests, error_group_root_cause_analyses):
        for some in chunks(ids):
            connection.execute(delete(table).where(is_one_of(connection, table.c.error_group_id, some)))
    _insert(
        connection,
        error_group_environments,
        [
            {"error_group_id": rows.error_group["error_group_id"], "environment": name}
            for rows in batch
            for name in rows.environments
        ],
    )
    _insert(connection, error_group_playwright_tests, [row for rows in batch for row in rows.playwright_tests])
    _insert(connection, error_group_root_cause_analyses, [row for rows in batch for row in rows.root_cause_analyses])


def error_groups_gone(connection: Connection, ids: Iterable[str]) -> None:
    """Checkly no longer has them: what we know stays, and they are not asked for again."""
    # One by one: an UPDATE of several would lock them in an order of its own.
    moment = now(connection)
    statement = update(error_groups).where(_g.error_group_id == bindparam("id_")).values(fetched_at=moment)
    for id_ in sorted(ids):
        connection.execute(statement, {"id_": id_})
        _fresh(connection, [id_], moment)


def _fresh(connection: Connection, ids: Sequence[str], asked_at: datetime) -> None:
    """No longer stale; for groups that are locked already."""
    for some in chunks(ids):
        is_it = (is_one_of(connection, _g.error_group_id, some), _g.stale_since <= asked_at)
        connection.execute(update(error_groups).where(*is_it).values(stale_since=None))


# --- payloads and drift -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payload:
    """One document to keep as received."""

    kind: str
    document_id: str
    account_id: str | None
    test_session_id: str | None
    document: Document


def save_payloads(connection: Connection, payloads: Sequence[Payload]) -> None:
    """Keep the latest document of each kind and id."""
    if not payloads:
        return
    moment = now(connection)
    rows = [
        {
            "kind": payload.kind,
            "document_id": payload.document_id,
            "account_id": payload.account_id,
            "test_session_id": payload.test_session_id,
            "sha256": payload.document.sha256,
            "fetched_at": moment,
            "body": payload.document.body,
        }
        for payload in sorted(payloads, key=lambda payload: (payload.kind, payload.document_id))
    ]
    if sum(len(payload.document.body) for payload in payloads) <= LARGE_PAYLOAD:
        bulk.upsert_texts(connection, etl_payloads, rows, "body")
        return
    for row in rows:  # one by one: drivers copy what they are given
        bulk.upsert_texts(connection, etl_payloads, [row], "body")
    drop_afterwards(connection)


def _bytes_of(connection: Connection, column: Any) -> Any:
    if connection.dialect.name == "postgresql":
        return func.convert_to(column, "UTF8", type_=LargeBinary)
    return cast(column, LargeBinary)


def load_payloads(
    connection: Connection, kind: str, ids: Collection[str], *, lock: bool = False
) -> dict[str, tuple[Document, str | None]]:
    """Stored documents with the account that each was fetched with, by id; with `lock` they stay as they are."""
    c = etl_payloads.c
    found: dict[str, tuple[Document, str | None]] = {}
    is_small = func.length(c.body) <= LARGE_PAYLOAD
    for some in chunks(sorted(ids)):
        body = case((is_small, _bytes_of(connection, c.body)), else_=None)
        query = select(c.document_id, body, c.account_id).where(
            c.kind == kind, is_one_of(connection, c.document_id, some)
        )
        if lock:
            query = query.order_by(c.document_id).with_for_update()
        for id_, read, account_id in connection.execute(query).all():
            found[id_] = (known(_large_body(connection, kind, id_) if read is None else bytes(read)), account_id)
    return found


def _large_body(connection: Connection, kind: str, document_id: str) -> bytes:
    """Alone, and on PostgreSQL in binary: as text, bytes take twice their size on the way."""
    drop_afterwards(connection)
    if connection.dialect.name == "postgresql":
        from etl.postgresql import cursor_of

        with cursor_of(connection, binary=True) as cursor:
            cursor.execute(
                "SELECT convert_to(body, 'UTF8') FROM etl_payloads WHERE kind = %s AND document_id = %s",
                (kind, document_id),
            )
            return bytes(cursor.fetchall()[0][0])
    c = etl_payloads.c
    query = select(_bytes_of(connection, c.body)).where(c.kind == kind, c.document_id == document_id)
    return bytes(connection.execute(query).scalar_one())


def result_payloads(connection: Connection, ids: Collection[str]) -> dict[str, dict[str, datetime]]:
    """Which results of these sessions have a stored document, and of when: by session, and in it by result."""
    c = etl_payloads.c
    found: dict[str, dict[str, datetime]] = {}
    for some in chunks(sorted(ids)):
        query = select(c.test_session_id, c.document_id, c.fetched_at)
        query = query.where(is_one_of(connection, c.test_session_id, some), c.kind == "test_session_result")
        for test_session_id, result_id, fetched_at in connection.execute(query):
            found.setdefault(test_session_id, {})[result_id] = fetched_at
    return found


def payload_ids(connection: Connection, kind: str, *, after: str | None, limit: int) -> list[str]:
    """Ids of stored documents in order, from behind `after`: as many as fit into memory together, at most `limit`."""
    c = etl_payloads.c
    query = select(c.document_id, func.length(c.body)).where(c.kind == kind).order_by(c.document_id).limit(limit)
    if after is not None:
        query = query.where(c.document_id > after)
    found: list[str] = []
    size = 0
    for id_, length in connection.execute(query):
        size += length
        if found and size > LARGE_PAYLOAD:
            break
        found.append(id_)
    return found


def count_payloads(connection: Connection, kind: str) -> int:
    """How many documents of a kind are stored."""
    return connection.execute(select(func.count()).where(etl_payloads.c.kind == kind)).scalar_one()


def ids_without_payload(connection: Connection, *, after: str | None, limit: int) -> list[str]:
    """Return the next ids, in order, of test sessions whose document is not stored."""
    is_stored = exists().where(etl_payloads.c.kind == TEST_SESSION, etl_payloads.c.document_id == _s.test_session_id)
    query = select(_s.test_session_id).where(~is_stored)
    if after is not None:
        query = query.where(_s.test_session_id > after)
    return list(connection.execute(query.order_by(_s.test_session_id).limit(limit)).scalars())


def replay_due(connection: Connection) -> list[str]:
    """Return why a replay is due: what releases since the last one read otherwise. Empty: it is not."""
    return list(connection.execute(select(etl_replay_due.c.reason).order_by(etl_replay_due.c.revision)).scalars())


def replay_done(connection: Connection) -> None:
    """Note that a replay came to its end."""
    connection.execute(delete(etl_replay_due))


def count_without_payload(connection: Connection) -> int:
    """How many test sessions we hold whose document is not stored."""
    c = etl_payloads.c
    is_stored = exists().where(c.kind == TEST_SESSION, c.document_id == _s.test_session_id)
    return connection.execute(select(func.count()).select_from(test_sessions).where(~is_stored)).scalar_one()


def save_drift(connection: Connection, drifts: Iterable[DriftRows]) -> None:
    """Add to what the typed columns do not know. The oldest of more than a thousand lines are forgotten."""
    total: dict[tuple[str, str], tuple[int, str]] = {}
    for drift in drifts:
        for key, (occurrences, example) in drift.found.items():
            before, kept = total.get(key, (0, example))
            total[key] = (before + occurrences, min(kept, example))
    if not total:
        return
    moment, c = now(connection), etl_drift.c
    statement = insert(connection, etl_drift)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["kind", "json_path"],
        set_={
            "last_seen_at": new.last_seen_at,
            "occurrences": c.occurrences + new.occurrences,
            # The least, so that it does not depend on which session came first.
            "example": case(
                (_bytes_of(connection, new.example) < _bytes_of(connection, c.example), new.example), else_=c.example
            ),
        },
    )
    rows = [
        {
            "kind": kind,
            "json_path": json_path,
            "first_seen_at": moment,
            "last_seen_at": moment,
            "occurrences": occurrences,
            "example": example,
        }
        for (kind, json_path), (occurrences, example) in sorted(total.items())
    ]
    _execute(connection, statement, rows)
    forgotten = (
        select(c.kind, c.json_path)
        .order_by(c.last_seen_at.desc(), c.kind, c.json_path)
        .offset(DRIFT_KEPT)
        .with_for_update(skip_locked=True)
    )
    for row in connection.execute(forgotten).all():
        connection.execute(delete(etl_drift).where(c.kind == row.kind, c.json_path == row.json_path))


# --- runs -------------------------------------------------------------------------------------------------------


def start_run(connection: Connection, command: str) -> str:
    """A new row of etl_runs. Runs whose process has died, or that have been silent for a day, are interrupted.

    The newest thousand are kept: at one every five minutes, half a week.
    """
    moment, etl_run_id = now(connection), str(uuid4())
    c = etl_runs.c
    unfinished = select(c.etl_run_id, c.process, c.heartbeat_at).where(c.outcome.is_(None)).order_by(c.etl_run_id)
    for run in connection.execute(unfinished).all():
        if process.has_died(run.process) or run.heartbeat_at < moment - RUN_SILENCE:
            connection.execute(
                update(etl_runs)
                .where(c.etl_run_id == run.etl_run_id, c.outcome.is_(None))
                .values(outcome="interrupted", finished_at=c.heartbeat_at, error="its process ended without a word")
            )
    forgotten = select(c.etl_run_id).order_by(c.started_at.desc()).offset(RUNS_KEPT - 1)
    for some in chunks(connection.execute(forgotten.with_for_update(skip_locked=True)).scalars().all()):
        connection.execute(delete(etl_runs).where(is_one_of(connection, c.etl_run_id, some), c.outcome.is_not(None)))
    connection.execute(
        etl_runs.insert().values(
            etl_run_id=etl_run_id,
            command=command,
            process=process.NAME,
            started_at=moment,
            heartbeat_at=moment,
            **dict.fromkeys(COUNTERS, 0),
        )
    )
    return etl_run_id


def is_ahead(connection: Connection) -> bool:
    """Whether a run wrote at a time that is still to come: the clock was set back."""
    ahead = select(etl_runs.c.etl_run_id).where(etl_runs.c.heartbeat_at > now(connection) + CLOCK_TOLERANCE).limit(1)
    return connection.execute(ahead).first() is not None


def forget_future(connection: Connection) -> None:
    """The clock was set back: runs that wrote at times still to come wrote now."""
    moment, c = now(connection), etl_runs.c
    ahead = c.heartbeat_at > moment + CLOCK_TOLERANCE
    ids = select(c.etl_run_id).where(ahead).order_by(c.etl_run_id).with_for_update()
    for some in chunks(connection.execute(ids).scalars().all()):
        # Those that are unfinished go on by themselves.
        times = {"heartbeat_at": moment, "started_at": case((c.started_at > moment, moment), else_=c.started_at)}
        connection.execute(update(etl_runs).where(is_one_of(connection, c.etl_run_id, some)).values(times))


def add_to_run(connection: Connection, etl_run_id: str, more: Mapping[str, int]) -> None:
    """Add to the run's counters, and say that it is alive. The row is locked until the transaction ends."""
    counters = {name: etl_runs.c[name] + number for name, number in more.items()}
    _update_run(connection, etl_run_id, {"heartbeat_at": now(connection), **counters})


def end_run(
    connection: Connection, etl_run_id: str, counters: Mapping[str, int], *, outcome: str, error: str | None
) -> None:
    """Write how it ended, and its counters as they are."""
    moment = now(connection)
    values = {"heartbeat_at": moment, "finished_at": moment, "outcome": outcome, "error": error, **counters}
    _update_run(connection, etl_run_id, values)


def _update_run(connection: Connection, etl_run_id: str, values: Row) -> None:
    connection.execute(update(etl_runs).where(etl_runs.c.etl_run_id == etl_run_id).values(values))


# --- what `status` shows ------------------------------------------------------------------------------------------


def freshness(connection: Connection) -> list[Row]:
    """The rows of v_freshness."""
    times = dict.fromkeys(("last_success_at", "newest_started_at", "oldest_due_at"), UtcTime())
    query = text("SELECT * FROM v_freshness ORDER BY account_id").columns(account_id=_s.test_session_id.type, **times)
    return [dict(row) for row in connection.execute(query).mappings()]


def unattended(rows: Iterable[Row], account_ids: Collection[str], moment: datetime) -> list[Row]:
    """Return the rows of `freshness` of other accounts than these whose ids have been waiting for a day or more.

    Other processes may export other accounts; what nobody takes for so long is an account taken out of the settings.
    """
    return [
        row
        for row in rows
        if row["account_id"] is not None
        and row["account_id"] not in account_ids
        and row["oldest_due_at"] is not None
        and moment - row["oldest_due_at"] > UNATTENDED
    ]


def when_lost(hours_until_loss: float) -> str:
    """The same as people say it."""
    hours = abs(hours_until_loss)
    told = f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
    return f"{'in' if hours_until_loss > 0 else 'since'} {told}"


_IS_STALE = and_(
    text("NOT test_sessions.is_final"),  # in the words of the index
    ~exists().where(etl_queue.c.test_session_id == _s.test_session_id),
)


def stale_test_sessions(connection: Connection, limit: int = 20) -> list[Row]:
    """Sessions that were RUNNING when we last saw them and that nobody will read again, newest first."""
    columns = (_s.test_session_id, _s.name, _s.status, _s.started_at, _s.exported_at)
    query = select(*columns).where(_IS_STALE).order_by(_s.started_at.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def count_stale(connection: Connection) -> int:
    """How many there are of these."""
    return connection.execute(select(func.count()).select_from(test_sessions).where(_IS_STALE)).scalar_one()


def verdicts(connection: Connection, ids: Collection[str]) -> list[Row]:
    """What we hold of these sessions: status, whether it is final, and our verdict; in the order of their ids."""
    query = (
        text("SELECT test_session_id, verdict FROM v_test_session_summary")
        .columns(test_session_id=_s.test_session_id.type, verdict=Text)
        .subquery("summary")
    )
    found = select(_s.test_session_id, _s.status, _s.is_final, query.c.verdict).join(
        query, query.c.test_session_id == _s.test_session_id
    )
    found = found.where(is_one_of(connection, _s.test_session_id, ids)).order_by(_s.test_session_id)
    return [dict(row) for row in connection.execute(found).mappings()]


def last_runs(connection: Connection, limit: int = 5) -> list[Row]:
    """The newest runs first."""
    query = select(etl_runs).order_by(etl_runs.c.started_at.desc(), etl_runs.c.etl_run_id).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def drift(connection: Connection, limit: int = 20) -> list[Row]:
    """What the typed columns do not know, newest first."""
    query = select(etl_drift).order_by(etl_drift.c.last_seen_at.desc(), etl_drift.c.json_path).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def count_drift(connection: Connection) -> int:
    """How many lines of drift there are."""
    return connection.execute(select(func.count()).select_from(etl_drift)).scalar_one()


def count_test_sessions(connection: Connection) -> int:
    """How many test sessions we hold."""
    return connection.execute(select(func.count()).select_from(test_sessions)).scalar_one()


# --- writing ----------------------------------------------------------------------------------------------------


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    _execute(connection, insert(connection, table), rows)


def _execute(connection: Connection, statement: Any, rows: Sequence[Row]) -> None:
    """In chunks, and with SQLAlchemy's types: for few rows, or with columns that `bulk` does not know."""
    for some in chunks(rows, 1000):
        bulk.columns_of(statement.table, some)  # executemany takes its columns from the first row
        connection.execute(statement, list(some))


def _delete_of(connection: Connection, table: Table, test_session_ids: Sequence[str]) -> None:
    for some in chunks(test_session_ids):
        connection.execute(delete(table).where(is_one_of(connection, table.c.test_session_id, some)))

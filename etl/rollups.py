"""Rollups: what views read instead of counting millions of executions again.

Hides when they are worth their cost and how they stay right. Triggers (`triggers/*.sql`) drop what was made of rows
that are written; a view counts what is dropped anew (its `etl_live_…`), and the steps of a refresh fill the gaps
from the very same view. So an answer never depends on whether there is a rollup, only its speed does.

Every verb takes a connection inside of the caller's transaction and never commits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import (
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Table,
    TextClause,
    bindparam,
    column,
    delete,
    exists,
    func,
    literal_column,
    select,
    table,
    text,
    update,
)

from etl.schema import drop_rollups, view_texts
from etl.tables import (
    check_executions,
    error_groups,
    etl_checks,
    etl_days,
    etl_rollup_check_daily,
    etl_rollup_duration_regressions,
    etl_rollup_error_group_impact,
    etl_rollup_error_occurrences,
    etl_rollup_failure_streaks,
    etl_rollup_flaky_checks,
    etl_rollup_test_session_summary,
    etl_touched_error_groups,
    test_session_result_error_groups,
    test_session_results,
    test_sessions,
)
from etl.words import ROLLED_UP_DAYS, ROLLUP_LOCK, in_dialect

logger = logging.getLogger(__name__)

WORTH_IT = 50_000  # executions; fewer are counted about as fast as rollups are read
SESSIONS_AT_ONCE = 1_000
HISTORIES_AT_ONCE = 10  # checks whose whole history is counted
CHECKS_AT_ONCE = 25  # of which a month is counted
# About so many. SQLite counts in temporary tables, whose caches are megabytes; PostgreSQL, asked for much more, would
# rather read the whole table than look up a part of it, and again for each piece.
EXECUTIONS_AT_ONCE = {"postgresql": 20_000, "sqlite": 5_000}
GROUPS_AT_ONCE = {"postgresql": 300, "sqlite": 10_000}  # both look at most links in any case
DAYS_KEPT = ROLLED_UP_DAYS + 5  # a clock may go back over midnight
PATIENCE = 1.0  # seconds for each piece, until the next pass is left to do it
# How many executions there are, about: to count them would take longer. One takes 400 bytes.
_EXECUTIONS = {
    "postgresql": "pg_relation_size('check_executions') / 400",
    "sqlite": "(SELECT MAX(rowid) FROM check_executions)",
}
# Nothing here is worth a pass that does not end. And a compiler for each statement would take longer than the rest.
_LOCAL_SETTINGS = "SET LOCAL statement_timeout = '120s'; SET LOCAL jit = off"

_g = error_groups.c
_k = etl_checks.c
_s = test_sessions.c
_stored = etl_rollup_test_session_summary.c

Keys = BindParameter[Any]
# Where to go on in the next transaction: after a key, a day; from the beginning; or nowhere.
After = Any
BEGIN, END = object(), object()
Fill = Callable[[Connection, Keys], tuple[Table, ...]]


class Step(Protocol):
    """One part of a refresh."""

    def __call__(self, connection: Connection, *, after: After) -> After:
        """Does the next piece; returns what to give it for the one after that, or END."""


def steps(connection: Connection) -> list[Step]:
    """What is to be done: each from BEGIN to END, piece by piece, each piece in a transaction of its own.

    Empty where there is little to count. Writers wait for a piece, so each counts little: a second's worth or less.
    Where a writer's transaction stays open, the rest is left to the next pass.
    """
    if not _is_worth_it(connection):
        return []
    return [_learn, _test_sessions(), _days(), _histories(connection), _checks(connection), _error_groups(connection)]


def _is_worth_it(connection: Connection) -> bool:
    some = "SELECT 1 FROM check_executions LIMIT :limit"
    counted = _run(connection, f"SELECT COUNT(*) FROM ({some}) AS few", limit=WORTH_IT)
    return bool(counted.scalar_one() >= WORTH_IT)


def _learn(connection: Connection, *, after: After) -> After:
    """What PostgreSQL must know to plan well: how many checks are open, and of the index of checks that it is there.

    It knows nothing of that index after a first backfill, or the upgrade that made it.
    """
    if connection.dialect.name == "postgresql":
        _analyze(connection, etl_checks, etl_days)
        ours = "schemaname = current_schema() AND tablename = 'ix_check_executions_check'"
        if _run(connection, f"SELECT 1 FROM pg_stats WHERE {ours}").first() is None:
            _analyze(
                connection,
                test_sessions,
                test_session_results,
                check_executions,
                error_groups,
                test_session_result_error_groups,
            )
    return END


def _in_batches(key: Column[Any], missing: ColumnElement[bool], size: int, fill: Fill) -> Step:
    """A step that fills the next `size` missing keys, in key order. At the end it analyzes what `fill` has filled."""
    filled: set[Table] = set()

    def step(connection: Connection, *, after: After) -> After:
        if not _is_alone(connection):
            return END
        query = select(key).where(missing)
        if after is not BEGIN:
            query = query.where(key > after)
        keys = connection.execute(query.order_by(key).limit(size)).scalars().all()
        if not keys:
            _analyze(connection, *sorted(filled, key=str))
            return END
        filled.update(fill(connection, bindparam("keys", keys, type_=key.type, expanding=True)))
        return keys[-1]

    return step


def _at_once(connection: Connection, most: int) -> int:
    """How many checks to count together: fewer of those that run often."""
    dialect = connection.dialect.name
    each = _run(connection, f"SELECT {_EXECUTIONS[dialect]} / NULLIF(COUNT(*), 0) FROM etl_checks").scalar_one() or 1
    return max(1, min(most, EXECUTIONS_AT_ONCE[dialect] // each))


# --- what there is to roll up -------------------------------------------------------------------------------


def _test_sessions() -> Step:
    """What sessions came to, and which check each error of theirs is of."""

    def fill(connection: Connection, keys: Keys) -> tuple[Table, ...]:
        occurrences = etl_rollup_error_occurrences
        connection.execute(delete(occurrences).where(occurrences.c.test_session_id.in_(keys)))
        _fill(connection, occurrences, text("test_session_id IN :keys").bindparams(keys))
        _fill(connection, etl_rollup_test_session_summary, text("test_session_id IN :keys").bindparams(keys))
        return occurrences, etl_rollup_test_session_summary

    missing = ~exists().where(_stored.test_session_id == _s.test_session_id)
    return _in_batches(_s.test_session_id, missing, SESSIONS_AT_ONCE, fill)


def _days() -> Step:
    """Days that are over, the newest first."""

    def step(connection: Connection, *, after: After) -> After:
        if not _is_alone(connection):
            return END
        before, parameters = ("DATE_AGO(0)", {}) if after is BEGIN else (":before", {"before": after})
        # A day is null when it is too old for a view to ask; and a clock that was wrong may have called it so.
        _run(
            connection,
            f"UPDATE etl_days SET is_rolled_up = NULL WHERE day < DATE_AGO({DAYS_KEPT}) AND is_rolled_up IS NOT NULL",
        )
        _run(
            connection,
            "UPDATE etl_days SET is_rolled_up = FALSE WHERE day >= ROLLED_UP_SINCE() AND is_rolled_up IS NULL",
        )
        day = _run(
            connection,
            f"SELECT MAX(day) FROM etl_days WHERE NOT is_rolled_up AND day < {before} AND day >= ROLLED_UP_SINCE()",
            **parameters,
        ).scalar()
        if day is None:
            _run(connection, f"DELETE FROM etl_rollup_check_daily WHERE day < DATE_AGO({DAYS_KEPT})")
            _analyze(connection, etl_days, etl_rollup_check_daily)
            return END
        _run(connection, "DELETE FROM etl_rollup_check_daily WHERE day = :day", day=day)
        _fill(connection, etl_rollup_check_daily, text("day = :day").bindparams(day=day))
        _run(connection, "UPDATE etl_days SET is_rolled_up = TRUE WHERE day = :day", day=day)
        return day

    return step


def _histories(connection: Connection) -> Step:
    """The failure streaks of checks that were touched."""

    def fill(connection: Connection, keys: Keys) -> tuple[Table, ...]:
        streaks = etl_rollup_failure_streaks
        connection.execute(delete(streaks).where(streaks.c.check_hash.in_(keys)))
        _fill(connection, streaks, text("check_hash IN :keys").bindparams(keys))
        connection.execute(update(etl_checks).where(_k.check_hash.in_(keys)).values(has_streaks=True))
        return (streaks,)

    return _in_batches(_k.check_hash, _k.has_streaks.is_not(True), _at_once(connection, HISTORIES_AT_ONCE), fill)


def _checks(connection: Connection) -> Step:
    """Names, flakiness and durations of checks that were touched, or whose rollup is for another day."""

    def fill(connection: Connection, keys: Keys) -> tuple[Table, ...]:
        today = _today(connection)
        executions = "SELECT 1 FROM check_executions e WHERE CHECK_HASH(e.account_id, e.check_key) = check_hash"
        gone = text(_sql(connection, f"NOT EXISTS ({executions})"))
        for rollup in (etl_rollup_flaky_checks, etl_rollup_duration_regressions):
            connection.execute(delete(rollup).where(rollup.c.check_hash.in_(keys)))
            _fill_open(connection, rollup, "IS_OPEN(k)", "k.check_hash IN :keys", keys)
        connection.execute(delete(etl_checks).where(_k.check_hash.in_(keys), gone))
        told = (
            "check_id, check_name, check_type, project_id, first_started_at, last_started_at, last_verdict, ambiguous"
        )
        live = f"SELECT DATE_AGO(0), {told} FROM etl_live_checks c WHERE c.check_hash = etl_checks.check_hash"
        if _today(connection) == today:  # SQLite's "now" goes on within a transaction
            statement = f"UPDATE etl_checks SET (rolled_up_for, {told}) = ({live}) WHERE check_hash IN :keys"
            connection.execute(text(_sql(connection, statement)).bindparams(keys))
        return etl_checks, etl_rollup_flaky_checks, etl_rollup_duration_regressions

    is_open = literal_column(_sql(connection, "IS_OPEN(etl_checks)"), Boolean)
    return _in_batches(_k.check_hash, is_open, _at_once(connection, CHECKS_AT_ONCE), fill)


def _error_groups(connection: Connection) -> Step:
    """The impact of error groups that were touched, or whose rollup is for another day."""

    def fill(connection: Connection, keys: Keys) -> tuple[Table, ...]:
        today = _today(connection)
        impact, touched = etl_rollup_error_group_impact, etl_touched_error_groups
        connection.execute(delete(impact).where(impact.c.error_group_id.in_(keys)))
        _fill_open(connection, impact, "IS_OPEN_GROUP(g)", "g.error_group_id IN :keys", keys)
        if _today(connection) == today:
            connection.execute(delete(touched).where(touched.c.error_group_id.in_(keys)))
        return (impact,)

    is_open = literal_column(_sql(connection, "IS_OPEN_GROUP(error_groups)"), Boolean)
    return _in_batches(_g.error_group_id, is_open, GROUPS_AT_ONCE[connection.dialect.name], fill)


def drop(connection: Connection) -> None:
    """Drop all rollups, and find the checks and days anew: for rows that were written past the triggers."""
    known = (
        "INSERT INTO etl_checks (check_hash, account_id, check_key) "
        "SELECT DISTINCT CHECK_HASH(account_id, check_key), account_id, check_key FROM check_executions "
        "WHERE TRUE ON CONFLICT DO NOTHING",
        "INSERT INTO etl_days (day, is_rolled_up) SELECT DISTINCT UTC_DAY(started_at), FALSE FROM check_executions "
        "WHERE TRUE ON CONFLICT DO NOTHING",
    )
    for statement in known:
        _run(connection, statement)
    drop_rollups(connection)


def sweep(connection: Connection) -> None:
    """Delete what no view reads any more: what is forgotten must not be left in a rollup."""
    open_checks = "SELECT check_hash FROM etl_checks WHERE"
    executions = "SELECT 1 FROM check_executions e WHERE CHECK_HASH(e.account_id, e.check_key) = check_hash"
    stored = "SELECT 1 FROM etl_rollup_test_session_summary m WHERE m.test_session_id = o.test_session_id"
    for statement in (
        f"DELETE FROM etl_rollup_failure_streaks WHERE check_hash IN ({open_checks} has_streaks IS NULL)",
        f"DELETE FROM etl_rollup_flaky_checks WHERE check_hash IN ({open_checks} rolled_up_for IS NULL)",
        f"DELETE FROM etl_rollup_duration_regressions WHERE check_hash IN ({open_checks} rolled_up_for IS NULL)",
        "DELETE FROM etl_rollup_check_daily WHERE day NOT IN (SELECT day FROM etl_days WHERE is_rolled_up)",
        f"DELETE FROM etl_rollup_error_occurrences AS o WHERE NOT EXISTS ({stored})",
        f"DELETE FROM etl_checks WHERE rolled_up_for IS NULL AND NOT EXISTS ({executions})",
        "UPDATE etl_checks SET check_id = NULL, check_name = NULL, check_type = NULL, project_id = NULL, "
        "first_started_at = NULL, last_started_at = NULL, last_verdict = NULL, ambiguous = NULL "
        "WHERE rolled_up_for IS NULL AND last_started_at IS NOT NULL",
    ):
        _run(connection, statement)


def _fill(connection: Connection, to: Table, where: TextClause) -> None:
    """Store the rows that the table's view counts."""
    names = [column.name for column in to.columns]
    source = table(_live(to), *map(column, names))
    connection.execute(to.insert().from_select(names, select(source).where(where)))


def _fill_open(connection: Connection, to: Table, open_ones: str, these: str, keys: Keys) -> None:
    """The same where a filter from outside would not spare the view the rest: it stands in its text."""
    names = ", ".join(column.name for column in to.columns)
    source = view_texts()[_live(to)]
    assert open_ones in source  # noqa: S101 - or everything would be counted in every batch
    statement = (
        f"INSERT INTO {to.name} ({names}) SELECT {names} FROM (\n{source.replace(open_ones, these)}) AS counted"
    )
    connection.execute(text(_sql(connection, statement)).bindparams(keys))


def _live(rollup: Table) -> str:
    return rollup.name.replace("etl_rollup_", "etl_live_")


def _today(connection: Connection) -> str:
    return str(_run(connection, "SELECT DATE_AGO(0)").scalar_one())


def _is_alone(connection: Connection) -> bool:
    """Keep writers out, for what one has not committed yet would be missing for good. SQLite has one writer anyway.

    Asked for again and again rather than waited for: whoever waits for a lock keeps all others waiting behind him.
    """
    if connection.dialect.name != "postgresql":
        return True
    connection.exec_driver_sql(_LOCAL_SETTINGS)
    until = time.monotonic() + PATIENCE
    while not connection.execute(select(func.pg_try_advisory_xact_lock(ROLLUP_LOCK))).scalar_one():
        if time.monotonic() > until:
            logger.debug("another transaction is open for long: the next pass refreshes the rollups")
            return False
        time.sleep(0.02)
    return True


def _analyze(connection: Connection, *tables: Table) -> None:
    """These tables turn over as a whole, and long before autovacuum looks at them."""
    if tables and connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ANALYZE " + ", ".join(table.name for table in tables))


def _run(connection: Connection, source: str, **parameters: Any) -> CursorResult[Any]:
    return connection.execute(text(_sql(connection, source)), parameters)


def _sql(connection: Connection, source: str) -> str:
    return in_dialect(source, connection.dialect.name, "rollups.py")

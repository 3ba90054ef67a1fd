"""Rollups: what views read instead of counting millions of executions again.

Hides when they are worth their cost and how they stay right. Triggers (`triggers/*.sql`) drop what was made of rows
that are written; a view counts what is dropped anew (its `etl_live_…`), and the steps of a refresh fill the gaps
from the very same view. So an answer never depends on whether there is a rollup, only its speed does.

Every verb takes a connection inside of the caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    CursorResult,
    Table,
    TextClause,
    bindparam,
    column,
    delete,
    exists,
    func,
    select,
    table,
    text,
    update,
)

from etl.schema import ROLLUP_LOCK, TOUCH_LOCK, view_sql
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
    test_session_result_error_groups,
    test_session_results,
    test_sessions,
)

WORTH_IT = 50_000  # executions; fewer are counted about as fast as rollups are read
SESSIONS_AT_ONCE = 1_000
CHECKS_AT_ONCE = 10  # whose whole history is counted
IN_WORK = "'0001-01-01'"  # `rolled_up_for` of what is being counted: a writer who touches it takes the mark away
REFRESH_LOCK = TOUCH_LOCK + 1
# Nothing here is worth a pass that does not end. And a compiler for each statement would take longer than the rest.
_LOCAL_SETTINGS = "SET LOCAL statement_timeout = '120s'; SET LOCAL jit = off"

_k = etl_checks.c
_s = test_sessions.c
_stored = etl_rollup_test_session_summary.c

Step = Callable[[Connection], bool]


def steps(connection: Connection) -> list[Step]:
    """What is to be done, each in a transaction of its own and again for as long as it returns True.

    Empty where there is little to count. Writers wait for a step for a second at most on PostgreSQL.
    """
    if not _is_worth_it(connection):
        return []
    return [
        _learn,
        _summarize_test_sessions(),
        _roll_up_a_day,
        _roll_up_streaks,
        _mark_checks,
        _roll_up_checks,
        _mark_error_groups,
        _roll_up_error_groups,
    ]


def _is_worth_it(connection: Connection) -> bool:
    some = "SELECT 1 FROM check_executions LIMIT :limit"
    counted = _run(connection, f"SELECT COUNT(*) FROM ({some}) AS few", limit=WORTH_IT)
    return bool(counted.scalar_one() >= WORTH_IT)


def _learn(connection: Connection) -> bool:
    """After a first backfill, or the upgrade that made it, PostgreSQL knows nothing of the index of checks."""
    if connection.dialect.name == "postgresql":
        known = (
            "SELECT 1 FROM pg_stats WHERE schemaname = current_schema() AND tablename = 'ix_check_executions_check'"
        )
        if connection.execute(text(known)).first() is None:
            _analyze(
                connection,
                test_sessions,
                test_session_results,
                check_executions,
                error_groups,
                test_session_result_error_groups,
            )
    return False


# --- test sessions, days, histories: few rows a step, so that writers can wait ---------------------------------


def _summarize_test_sessions() -> Step:
    """Sessions for which it is not stored what they came to, a batch at a time."""
    after: str | None = None

    def step(connection: Connection) -> bool:
        nonlocal after
        _keep_writers_out(connection)
        query = select(_s.test_session_id).where(~exists().where(_stored.test_session_id == _s.test_session_id))
        if after is not None:
            query = query.where(_s.test_session_id > after)
        ids = connection.execute(query.order_by(_s.test_session_id).limit(SESSIONS_AT_ONCE)).scalars().all()
        if not ids:
            if after is not None:
                _analyze(connection, etl_rollup_error_occurrences, etl_rollup_test_session_summary)
            return False
        these = bindparam("ids", ids, type_=_s.test_session_id.type, expanding=True)
        occurrences = etl_rollup_error_occurrences
        connection.execute(delete(occurrences).where(occurrences.c.test_session_id.in_(these)))
        _fill(connection, occurrences, text("test_session_id IN :ids").bindparams(these))
        _fill(connection, etl_rollup_test_session_summary, text("test_session_id IN :ids").bindparams(these))
        after = ids[-1]
        return True

    return step


def _roll_up_a_day(connection: Connection) -> bool:
    """The newest day that is over."""
    _keep_writers_out(connection)
    day = _run(
        connection,
        "SELECT MAX(day) FROM etl_days WHERE NOT is_rolled_up AND day < DATE_AGO(0) AND day >= ROLLED_UP_SINCE()",
    ).scalar()
    if day is None:
        # Older days are always counted again: they need no row, and with few the planner sees what is the case.
        _run(connection, "DELETE FROM etl_rollup_check_daily WHERE day < ROLLED_UP_SINCE()")
        _run(connection, "DELETE FROM etl_days WHERE day < ROLLED_UP_SINCE()")
        _analyze(connection, etl_days, etl_rollup_check_daily)
        return False
    _run(connection, "DELETE FROM etl_rollup_check_daily WHERE day = :day", day=day)
    _fill(connection, etl_rollup_check_daily, text("day = :day").bindparams(day=day))
    _run(connection, "UPDATE etl_days SET is_rolled_up = TRUE WHERE day = :day", day=day)
    return True


def _roll_up_streaks(connection: Connection) -> bool:
    """The next checks that were touched."""
    _keep_writers_out(connection)
    touched = select(_k.check_hash).where(_k.has_streaks.is_not(True)).order_by(_k.check_hash).limit(CHECKS_AT_ONCE)
    hashes = connection.execute(touched).scalars().all()
    if not hashes:
        return False
    streaks = etl_rollup_failure_streaks
    these = bindparam("hashes", hashes, type_=_k.check_hash.type, expanding=True)
    connection.execute(delete(streaks).where(streaks.c.check_hash.in_(these)))
    _fill(connection, streaks, text("check_hash IN :hashes").bindparams(these))
    connection.execute(update(etl_checks).where(_k.check_hash.in_(these)).values(has_streaks=True))
    return True


# --- checks and error groups: marked, counted while writers go on, and kept where the mark is still there ------


def _mark_checks(connection: Connection) -> bool:
    """Every check that was touched, or whose rollup is for another day."""
    _keep_writers_out(connection)
    stale = "(rolled_up_for IS NULL OR rolled_up_for <> DATE_AGO(0))"
    executions = (
        "SELECT 1 FROM check_executions e WHERE CHECK_HASH(e.account_id, e.check_key) = etl_checks.check_hash"
    )
    _run(connection, f"DELETE FROM etl_checks WHERE {stale} AND NOT EXISTS ({executions})")
    _run(connection, f"UPDATE etl_checks SET rolled_up_for = {IN_WORK} WHERE {stale}")
    return False


def _roll_up_checks(connection: Connection) -> bool:
    marked = f"SELECT 1 FROM etl_checks WHERE rolled_up_for = {IN_WORK} LIMIT 1"
    if not _is_alone(connection) or _run(connection, marked).first() is None:
        return False
    right = "SELECT check_hash FROM etl_checks WHERE rolled_up_for = DATE_AGO(0)"
    for rollup in (etl_rollup_flaky_checks, etl_rollup_duration_regressions):
        _run(connection, f"DELETE FROM {rollup.name} WHERE check_hash NOT IN ({right})")
        _fill(connection, rollup)
    told = "check_id, check_name, check_type, project_id, first_started_at, last_started_at, last_verdict"
    live = f"SELECT DATE_AGO(0), {told} FROM etl_live_checks c WHERE c.check_hash = etl_checks.check_hash"
    _run(
        connection,
        f"UPDATE etl_checks SET (rolled_up_for, {told}) = ({live}) WHERE rolled_up_for = {IN_WORK}",
    )
    _analyze(connection, etl_checks, etl_rollup_flaky_checks, etl_rollup_duration_regressions)
    return False


def _mark_error_groups(connection: Connection) -> bool:
    """Every error group that was touched, or whose rollup is for another day."""
    _keep_writers_out(connection)
    _run(connection, "DELETE FROM etl_rollup_error_group_impact WHERE rolled_up_for <> DATE_AGO(0)")
    counts = [column.name for column in etl_rollup_error_group_impact.columns if isinstance(column.type, BigInteger)]
    _run(
        connection,
        "INSERT INTO etl_rollup_error_group_impact "
        f"(error_group_id, rolled_up_for, is_new, is_regression, {', '.join(counts)}) "
        f"SELECT error_group_id, {IN_WORK}, FALSE, FALSE, {', '.join('0' for _ in counts)} FROM error_groups g "
        "WHERE NOT EXISTS (SELECT 1 FROM etl_rollup_error_group_impact i WHERE i.error_group_id = g.error_group_id)",
    )
    return False


def _roll_up_error_groups(connection: Connection) -> bool:
    if not _is_alone(connection):
        return False
    names = [column.name for column in etl_rollup_error_group_impact.columns if not column.primary_key]
    counted = _run(
        connection,
        f"UPDATE etl_rollup_error_group_impact SET {', '.join(f'{name} = l.{name}' for name in names)} "
        "FROM etl_live_error_group_impact l WHERE l.error_group_id = etl_rollup_error_group_impact.error_group_id "
        f"AND etl_rollup_error_group_impact.rolled_up_for = {IN_WORK}",
    )
    if counted.rowcount:
        _analyze(connection, etl_rollup_error_group_impact)
    return False


def drop(connection: Connection) -> None:
    """Drop all rollups, and find the checks and days anew: for rows that were written past the triggers."""
    _keep_writers_out(connection)
    known = (
        "INSERT INTO etl_checks (check_hash, account_id, check_key) "
        "SELECT DISTINCT CHECK_HASH(account_id, check_key), account_id, check_key FROM check_executions "
        "WHERE TRUE ON CONFLICT DO NOTHING",
        "INSERT INTO etl_days (day, is_rolled_up) SELECT DISTINCT UTC_DAY(started_at), FALSE FROM check_executions "
        "WHERE TRUE ON CONFLICT DO NOTHING",
    )
    for statement in known:
        _run(connection, statement)
    connection.execute(etl_checks.update().values(rolled_up_for=None, has_streaks=None))
    connection.execute(etl_days.update().values(is_rolled_up=False))
    connection.execute(etl_rollup_error_group_impact.delete())
    connection.execute(etl_rollup_test_session_summary.delete())


def _fill(connection: Connection, to: Table, where: TextClause | None = None) -> int:
    """Store the rows that the table's view counts. Returns how many."""
    names = [column.name for column in to.columns]
    source = table(to.name.replace("etl_rollup_", "etl_live_"), *map(column, names))
    counted = select(source) if where is None else select(source).where(where)
    return connection.execute(to.insert().from_select(names, counted)).rowcount


def _keep_writers_out(connection: Connection) -> None:
    """What a writer has not committed yet would be missing for good. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_LOCAL_SETTINGS)
        connection.execute(select(func.pg_advisory_xact_lock(ROLLUP_LOCK)))


def _is_alone(connection: Connection) -> bool:
    """One process at a time counts what takes long; who comes second leaves it to the first."""
    if connection.dialect.name != "postgresql":
        return True
    connection.exec_driver_sql(_LOCAL_SETTINGS)
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(REFRESH_LOCK))).scalar_one())


def _analyze(connection: Connection, *tables: Table) -> None:
    """These tables turn over as a whole, and long before autovacuum looks at them."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("ANALYZE " + ", ".join(table.name for table in tables))


def _run(connection: Connection, source: str, **parameters: Any) -> CursorResult[Any]:
    return connection.execute(text(view_sql(source, connection.dialect.name)), parameters)

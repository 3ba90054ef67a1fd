"""How fast the views answer at size: makes a warehouse of N executions and times what a dashboard asks.

    .venv/bin/python bench/views.py --url postgresql://root@127.0.0.1:5432/test --executions 10000000
    .venv/bin/python bench/views.py --url sqlite:////tmp/bench.db --executions 1000000

On PostgreSQL a database `etl_bench_views` is made beside the given one and kept, so that a second run only measures
(`--anew` makes it again); on SQLite the file. The data: 2,000 checks in 500 sessions a day and up, two environments,
three locations, 60 % of them on main, 4 % failures, 3 % retries, one year. Each question is asked three times after
one that warms up; the median is printed, with `--plans` the plans, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from etl import schema
from etl.database import Database

NAME = "etl_bench_views"
CHECKS = 2000
PER_SESSION = 20
AT_ONCE = 500_000  # executions in a statement
DAYS = 365
ACCOUNT = "33333333-3333-4333-8333-333333333333"

# {a}, {b}: the first number and the one behind the last; {s}: their alias. The rest is the same on both engines.
WORDS = {
    "postgresql": {
        "numbers": "generate_series({a}, {b} - 1) AS {s}(i)",
        "uuid": "CAST(lpad(to_hex({0}), 8, '0') || '-0000-4000-8000-000000000000' AS uuid)",
        "time": "to_timestamp({0})",
        "hash": "(abs(hashint8(CAST({0} AS bigint) * 7919 + {1})::bigint) % {2})",
        "key": "md5({0}) || md5({0})",
    },
    "sqlite": {
        "numbers": "(WITH RECURSIVE n(i) AS (SELECT {a} UNION ALL SELECT i + 1 FROM n WHERE i < {b} - 1) "
        "SELECT i FROM n) AS {s}",
        "uuid": "(printf('%08x', {0}) || '-0000-4000-8000-000000000000')",
        "time": "(strftime('%Y-%m-%d %H:%M:%S', {0}, 'unixepoch') || '.000000')",
        "hash": "(((({0}) * 2654435761 + {1} * 40503) / 65536) % {2})",
        "key": "('h' || {0})",
    },
}


def make(database: Database, executions: int) -> None:
    """Fill a migrated, empty warehouse."""
    w = WORDS["sqlite" if database.is_sqlite else "postgresql"]
    sessions = executions // PER_SESSION
    t0 = int(time.time()) - DAYS * 86400
    step = DAYS * 86400 / sessions

    def h(i: str, salt: int, size: int) -> str:
        return w["hash"].format(i, salt, size)

    branch = f"CASE WHEN {h('s.i', 1, 10)} < 6 THEN 'main' ELSE 'feature-' || CAST({h('s.i', 2, 400)} AS text) END"
    environment = f"CASE WHEN {h('s.i', 3, 3)} = 0 THEN 'staging' ELSE 'production' END"
    commit = f"CAST({h('s.i', 4, 1_000_000)} AS text)"
    location = f"CASE {h('e.i', 8, 3)} WHEN 0 THEN 'eu-central-1' WHEN 1 THEN 'us-east-1' ELSE 'ap-south-1' END"
    session_of = f"(e.i / {PER_SESSION})"
    check = f"((e.i * 37 + e.i / {PER_SESSION}) % {CHECKS})"
    started = w["time"].format(f"CAST({t0} + {step} * {session_of} + (e.i % {PER_SESSION}) AS bigint)")
    is_failed = f"{h('e.i', 5, 100)} < 4"
    is_flaky = f"{h('e.i', 6, 100)} < 3"
    statements = [
        f"""
        INSERT INTO test_sessions (test_session_id, account_id, project_id, name, status, is_final, environment,
            branch_name, commit_id, started_at, stopped_at, first_exported_at, exported_at, payload_sha256)
        SELECT {w["uuid"].format("s.i")}, '{ACCOUNT}', {w["uuid"].format("1")}, 'session', 'PASSED', true,
            {environment}, {branch}, {commit}, {w["time"].format(f"CAST({t0} + {step} * s.i AS bigint)")},
            {w["time"].format(f"CAST({t0} + {step} * s.i + 300 AS bigint)")}, {w["time"].format(str(t0))},
            {w["time"].format(str(t0))}, ''
        FROM {w["numbers"].format(a=0, b=sessions, s="s")}
        """,
        *(
            f"""
        INSERT INTO check_executions (test_session_id, execution_no, check_key, history_key, grouped_by,
            test_session_result_id, link, check_id, check_name, check_type, run_location, status, verdict, retries,
            is_retry_flaky, is_degraded, has_errors, started_at, stopped_at, duration_ms, retry_cost_ms, account_id,
            project_id, environment, branch_name, commit_id)
        SELECT t.test_session_id, e.i % {PER_SESSION} + 1, CAST({w["uuid"].format(check)} AS text),
            {w["key"].format(f"CAST({check} AS text) || t.branch_name || t.environment || {location}")}, 'inferred',
            {w["uuid"].format("e.i")}, 'https://app.checklyhq.com/x', {w["uuid"].format(check)},
            'check ' || CAST({check} AS text), 'BROWSER', {location},
            CASE WHEN {is_failed} THEN 'FAILED' ELSE 'PASSED' END,
            CASE WHEN {is_failed} THEN 'FAILED' ELSE 'PASSED' END,
            CASE WHEN {is_flaky} THEN 1 ELSE 0 END, {is_flaky} AND NOT {is_failed}, {h("e.i", 9, 50)} = 0, false,
            {started}, {started}, 500 + {h("e.i", 7, 9000)}, CASE WHEN {is_flaky} THEN 800 ELSE 0 END, t.account_id,
            t.project_id, t.environment, t.branch_name, t.commit_id
        FROM {w["numbers"].format(a=first, b=min(first + AT_ONCE, executions), s="e")}
        JOIN test_sessions t ON t.test_session_id = {w["uuid"].format(session_of)}
        """
            for first in range(0, executions, AT_ONCE)
        ),
        f"""
        INSERT INTO error_groups (error_group_id, account_id, cleaned_error_message)
        SELECT {w["uuid"].format("s.i")}, '{ACCOUNT}', 'error ' || CAST(s.i AS text)
        FROM {w["numbers"].format(a=0, b=1000, s="s")}
        """,
        """
        INSERT INTO test_session_results (test_session_id, test_session_result_id, position, execution_no, check_name,
            run_location, result_type, status, started_at)
        SELECT test_session_id, test_session_result_id, execution_no, execution_no, check_name, run_location, 'FINAL',
            status, started_at
        FROM check_executions WHERE verdict = 'FAILED'
        """,
        f"""
        INSERT INTO test_session_result_error_groups (test_session_id, test_session_result_id, error_group_id)
        SELECT test_session_id, test_session_result_id,
            {w["uuid"].format(h("execution_no + CAST(duration_ms AS bigint)", 11, 1000))}
        FROM check_executions WHERE verdict = 'FAILED'
        """,
    ]
    for statement in statements:
        began = time.monotonic()
        with database.writing() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%") if not database.is_sqlite else statement)
        print(f"  {time.monotonic() - began:7.1f} s  {' '.join(statement.split())[:60]}", flush=True)


def questions(connection: Connection, *, is_sqlite: bool) -> list[tuple[str, str, dict[str, Any]]]:
    """(view, what is asked, SQL with its parameters)."""
    check = connection.execute(
        text("SELECT check_key FROM check_executions ORDER BY started_at DESC LIMIT 1")
    ).scalar_one()
    thirty = "date('now', '-29 days')" if is_sqlite else "CAST(now() AS date) - 29"
    since = f"started_at >= {thirty}"
    asked: list[tuple[str, str, dict[str, Any]]] = []
    for view in (
        "v_check_daily", "v_execution_history", "v_failure_streaks", "v_commit_flakiness", "v_flaky_checks",
        "v_error_occurrences", "v_duration_regressions", "v_checks",
    ):  # fmt: skip
        asked.append((f"{view}, one check", f"SELECT * FROM {view} WHERE check_key = :check", {"check": check}))
    for view in (
        "v_check_daily",
        "v_execution_history",
        "v_failure_streaks",
        "v_error_occurrences",
        "v_test_session_summary",
    ):
        asked.append((f"{view}, one branch", f"SELECT * FROM {view} WHERE branch_name = 'feature-7'", {}))
    asked += [
        ("v_check_daily, main, 30 days",
         f"SELECT * FROM v_check_daily WHERE branch_name = 'main' AND day >= {thirty}", {}),
        ("v_execution_history, main, 30 days",
         f"SELECT * FROM v_execution_history WHERE branch_name = 'main' AND {since}", {}),
        ("v_failure_streaks, main, 30 days",
         f"SELECT * FROM v_failure_streaks WHERE branch_name = 'main' AND first_failed_at >= {thirty}", {}),
        ("v_error_occurrences, main, 30 days",
         f"SELECT * FROM v_error_occurrences WHERE branch_name = 'main' AND {since}", {}),
        ("v_check_daily, all checks, 30 days", f"SELECT * FROM v_check_daily WHERE day >= {thirty}", {}),
        ("v_flaky_checks, all checks", "SELECT * FROM v_flaky_checks", {}),
        ("v_test_session_summary, 30 days", f"SELECT * FROM v_test_session_summary WHERE {since}", {}),
        ("v_test_session_summary, main, 30 days",
         f"SELECT * FROM v_test_session_summary WHERE branch_name = 'main' AND {since}", {}),
        ("v_error_group_impact, all groups", "SELECT * FROM v_error_group_impact", {}),
        ("v_duration_regressions, all checks", "SELECT * FROM v_duration_regressions", {}),
        ("v_freshness, all", "SELECT * FROM v_freshness", {}),
    ]  # fmt: skip
    return asked


def measure(database: Database, *, plans: bool, only: str) -> None:
    """Print the median of three for each question."""
    with database.reading() as connection:
        asked = [q for q in questions(connection, is_sqlite=database.is_sqlite) if only in q[0]]
    for what, sql, parameters in asked:
        view = what.split(",")[0]
        took: list[float] = []
        rows = 0
        with database.reading() as connection:
            if not database.is_sqlite:
                connection.exec_driver_sql("SET LOCAL statement_timeout = '120s'")
            try:
                # Every column is counted, so that none is left out; to fetch a million rows is the client's work.
                names = connection.execute(text(f"SELECT * FROM {view} LIMIT 0")).keys()
                counts = ", ".join(f'count("{name}")' for name in names)
                for _ in range(4):
                    began = time.monotonic()
                    rows = len(connection.execute(text(f"SELECT {counts} FROM ({sql}) AS q"), parameters).all())
                    took.append(time.monotonic() - began)
            except Exception as error:
                print(f"{'> 120':>9} s  {what}   ({type(error).__name__})", flush=True)
                continue
            print(f"{statistics.median(took[1:]):9.3f} s  {what}", flush=True)
        if plans:
            with database.reading() as connection:
                explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN (ANALYZE, COSTS OFF, TIMING ON)"
                for row in connection.execute(text(f"{explain} {sql}"), parameters):
                    print("           ", row[-1])
        assert rows == 1


def main() -> None:
    """Make, if there is nothing, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--executions", type=int, default=10_000_000)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--only", default="", help="a part of a question's name")
    arguments = parser.parse_args()
    url = make_url(arguments.url)
    if url.get_backend_name() == "postgresql":
        with psycopg.connect(arguments.url, autocommit=True) as connection:
            if arguments.anew:
                connection.execute(f'DROP DATABASE IF EXISTS "{NAME}" WITH (FORCE)'.encode())
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,)).fetchone() is None:
                connection.execute(f"CREATE DATABASE \"{NAME}\" TEMPLATE template0 ENCODING 'UTF8'".encode())
        url = url.set(database=NAME)
    elif arguments.anew:
        Path(str(url.database)).unlink(missing_ok=True)
    database = Database(url.render_as_string(hide_password=False), create=True)
    schema.migrate(database)
    with database.reading() as connection:
        is_empty = connection.execute(text("SELECT 1 FROM test_sessions LIMIT 1")).first() is None
    if is_empty:
        print(f"making {arguments.executions:,} executions", flush=True)
        make(database, arguments.executions)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE" if database.is_sqlite else "VACUUM ANALYZE")
    measure(database, plans=arguments.plans, only=arguments.only)
    database.close()


if __name__ == "__main__":
    main()

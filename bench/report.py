"""What the report costs: makes a warehouse of N executions in 30 days, writes the report, opens it in a real browser.

    .venv/bin/python bench/report.py --url sqlite:////tmp/report.db
    .venv/bin/python bench/report.py --url postgresql://root@127.0.0.1:5432/test --executions 1000000 --checks 5000

On PostgreSQL a database `etl_bench_report` is made beside the given one and kept, on SQLite the file (`--anew` makes
it again). The data: names of forty characters, ids that do not compress, 60 % on main and the rest on 200 branches,
two environments, three locations, 4 % failures in streaks, an error group each. Told are medians of three: seconds
and memory of `checkly-etl report`, the file, the first paint, the page drawn whole, and a filter.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from playwright.sync_api import sync_playwright
from sqlalchemy import text
from sqlalchemy.engine import make_url

from etl import pipeline, schema
from etl.database import Database
from etl.tables import (
    check_executions,
    error_groups,
    test_session_result_error_groups,
    test_session_results,
    test_sessions,
)

NAME = "etl_bench_report"
ACCOUNT = "33333333-3333-4333-8333-333333333333"
DAYS = 30
PER_SESSION = 20
GROUPS = 500
WORDS = [
    "checkout", "cart", "login", "search", "payment", "invoice", "profile", "webhook", "catalog", "stock", "coupon",
    "refund", "address",
]  # fmt: skip
LOCATIONS = ("eu-central-1", "us-east-1", "ap-southeast-2")
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


def rows(executions: int, checks: int) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The rows of a session each, by the name of their table."""
    chance = random.Random(7)
    began = datetime.now(UTC) - timedelta(days=DAYS)
    sessions = executions // PER_SESSION
    identity = [str(UUID(int=chance.getrandbits(128))) for _ in range(checks)]
    names = [" ".join(chance.choices(WORDS, k=5)).capitalize() + f" {i}" for i in range(checks)]
    groups = [str(UUID(int=chance.getrandbits(128))) for _ in range(GROUPS)]
    yield {
        "error_groups": [
            {
                "error_group_id": id_,
                "account_id": ACCOUNT,
                "cleaned_error_message": f"Error: {' '.join(chance.choices(WORDS, k=25))}",
                "first_seen": began,
                "last_seen": began + timedelta(days=chance.random() * DAYS),
            }
            for id_ in groups
        ]
    }
    for number in range(sessions):
        session = str(UUID(int=chance.getrandbits(128)))
        started = began + timedelta(days=DAYS) * (number / sessions)
        where = {
            "environment": chance.choice(("production", "production", "staging")),
            "branch_name": "main" if chance.random() < 0.6 else f"feature-{chance.randrange(200)}",
            "commit_id": f"{chance.getrandbits(160):040x}",
            "account_id": ACCOUNT,
        }
        made: dict[str, list[dict[str, Any]]] = {
            "test_sessions": [
                {
                    "test_session_id": session,
                    "status": "PASSED",
                    "is_final": True,
                    "started_at": started,
                    "stopped_at": started + timedelta(minutes=5),
                    "first_exported_at": started,
                    "exported_at": started,
                    "payload_sha256": "",
                    **where,
                }
            ],
            "check_executions": [],
            "test_session_results": [],
            "test_session_result_error_groups": [],
        }
        for execution_no in range(1, PER_SESSION + 1):
            check = (number * PER_SESSION + execution_no) % checks
            result, location = str(UUID(int=chance.getrandbits(128))), chance.choice(LOCATIONS)
            # A check that is broken stays so for a while: failures come in streaks.
            is_failed = chance.random() < (0.6 if (check + started.day // 3) % 20 == 0 else 0.01)
            is_flaky = not is_failed and chance.random() < 0.03
            verdict = "FAILED" if is_failed else "PASSED"
            made["check_executions"].append(
                {
                    "test_session_id": session,
                    "execution_no": execution_no,
                    "check_key": identity[check],
                    "history_key": f"{check} {where['branch_name']} {where['environment']} {location}",
                    "grouped_by": "inferred",
                    "test_session_result_id": result,
                    "link": f"https://app.checklyhq.com/accounts/{ACCOUNT}/test-sessions/{session}/results/{result}",
                    "check_id": identity[check],
                    "check_name": names[check],
                    "check_type": ("BROWSER", "API", "MULTI_STEP")[check % 3],
                    "run_location": location,
                    "status": verdict,
                    "verdict": verdict,
                    "retries": int(is_flaky),
                    "is_retry_flaky": is_flaky,
                    "is_degraded": False,
                    "has_errors": False,
                    "started_at": started,
                    "stopped_at": started + timedelta(seconds=5),
                    "duration_ms": 500 + 9000 * chance.random(),
                    "retry_cost_ms": 800.0 if is_flaky else 0.0,
                    **where,
                }
            )
            if is_failed:
                made["test_session_results"].append(
                    {
                        "test_session_id": session,
                        "test_session_result_id": result,
                        "position": execution_no,
                        "execution_no": execution_no,
                        "check_name": names[check],
                        "run_location": location,
                        "result_type": "FINAL",
                        "status": verdict,
                        "started_at": started,
                    }
                )
                made["test_session_result_error_groups"].append(
                    {
                        "test_session_id": session,
                        "test_session_result_id": result,
                        "error_group_id": groups[(check + chance.randrange(3)) % GROUPS],
                    }
                )
        yield made


def make(database: Database, executions: int, checks: int) -> None:
    """Fill a migrated, empty warehouse, as a pass leaves it: rolled up if it is large."""
    tables = (
        error_groups, test_sessions, test_session_results, check_executions, test_session_result_error_groups,
    )  # fmt: skip
    waiting: dict[str, list[dict[str, Any]]] = {table.name: [] for table in tables}

    def flush() -> None:
        with database.writing() as connection:
            for table in tables:
                if waiting[table.name]:
                    connection.execute(table.insert(), waiting[table.name])
                    waiting[table.name] = []

    for made in rows(executions, checks):
        for name, some in made.items():
            waiting[name] += some
        if len(waiting["check_executions"]) >= 20_000:
            flush()
    flush()
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if database.is_sqlite else "VACUUM ANALYZE")
    pipeline.refresh_rollups(database)


def written(url: str, path: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of one `checkly-etl report`."""
    began = time.monotonic()
    command = [sys.executable, "-m", "etl", "report", "-q", "-o", str(path)]
    with subprocess.Popen(command, env={**os.environ, "CHECKLY_ETL_WAREHOUSE_URL": url}) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.monotonic() - began, usage.ru_maxrss / 1000


def opened(path: Path, browser: str, times: int) -> list[tuple[float, float, float]]:
    """Of each opening: milliseconds to the first paint, until all is drawn, and of a filter."""
    found = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=CHROMIUM)
        for _ in range(times):
            page = chromium.new_page()
            page.goto(path.as_uri())
            page.wait_for_function("document.documentElement.dataset.ready === 'true'")
            painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            ready = page.evaluate("Number(document.documentElement.dataset.drawn)")
            filtered = page.evaluate(
                "async () => { const t = performance.now(); location.hash = 'branch=main';"
                " await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame);"
                " return performance.now() - t }"
            )
            found.append((painted, ready, filtered))
            page.close()
        chromium.close()
    return found


def main() -> None:
    """Make, if there is nothing, and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--checks", type=int, default=2_000)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
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
    shown = url.render_as_string(hide_password=False)
    database = Database(shown, create=True)
    schema.migrate(database)
    with database.reading() as connection:
        is_empty = connection.execute(text("SELECT 1 FROM test_sessions LIMIT 1")).first() is None
    if is_empty:
        print(f"making {arguments.executions:,} executions", flush=True)
        make(database, arguments.executions, arguments.checks)
    database.close()
    path = arguments.output.absolute()
    runs = [written(shown, path) for _ in range(3)]
    print(f"written in {statistics.median(seconds for seconds, _ in runs):.2f} s, {max(m for _, m in runs):.0f} MB")
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    pages = opened(path, arguments.browser, 3)
    for i, what in enumerate(("first paint", "all drawn", "a filter")):
        print(f"{what}: {statistics.median(page[i] for page in pages):.0f} ms")


if __name__ == "__main__":
    main()

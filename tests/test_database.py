"""The way to the database: transactions that wait, work that is run again, errors without secrets."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import ColumnElement, Connection, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, ProgrammingError, StatementError

from etl import bulk, schema
from etl.database import Database, chunks, is_one_of, is_transient, now
from etl.errors import ConfigError, SchemaNotCurrent, WarehouseUnavailable
from etl.tables import UtcTime, error_groups, etl_drift
from tests.conftest import rows, scalar
from tests.documents import uuid

SECRET = "hunter2-of-the-tests"


@pytest.fixture
def postgres(postgres_url: str, postgres_template: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated warehouse on PostgreSQL, for what only PostgreSQL does."""
    from tests import conftest

    name = f"etl_pg_{id(request)}"
    conftest._recreate(postgres_url, name, template=postgres_template)
    opened = Database(conftest._named(postgres_url, name))
    yield opened
    opened.close()
    conftest._drop(postgres_url, name)


def insert_drift(connection: Connection, path: str) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    connection.execute(
        etl_drift.insert().values(
            kind="test", json_path=path, first_seen_at=moment, last_seen_at=moment, occurrences=1
        )
    )


# --- transactions -------------------------------------------------------------------------------------------


def test_a_failed_block_leaves_nothing_and_a_good_one_is_committed(database: Database) -> None:
    def fail() -> None:
        with database.writing() as connection:
            insert_drift(connection, "$.lost")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.writing() as connection:
        insert_drift(connection, "$.kept")
    assert [row["json_path"] for row in rows(database, "SELECT json_path FROM etl_drift")] == ["$.kept"]


def test_two_writers_that_read_first_wait_for_each_other_and_none_is_told_that_it_is_locked(
    database: Database,
) -> None:
    with database.writing() as connection:
        insert_drift(connection, "$.counter")
    begun = threading.Barrier(4)
    problems: list[BaseException] = []

    def add() -> None:
        begun.wait()
        for _ in range(10):
            try:
                database.run(bump)
            except BaseException as error:
                problems.append(error)

    def bump(connection: Connection) -> None:
        lock = "" if database.is_sqlite else " FOR UPDATE"
        count = connection.execute(text(f"SELECT occurrences FROM etl_drift{lock}")).scalar_one()
        connection.execute(text("UPDATE etl_drift SET occurrences = :n"), {"n": count + 1})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert scalar(database, "SELECT occurrences FROM etl_drift") == 41


def test_a_writer_on_sqlite_takes_the_write_lock_at_its_very_beginning(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/w.db", create=True)
    other = sqlite3.connect(tmp_path / "w.db", timeout=0, isolation_level=None)
    with database.writing(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    with database.reading():
        other.execute("BEGIN IMMEDIATE")  # a reader does not stand in the way
    other.close()
    database.close()


def test_sqlite_files_are_in_wal_mode_with_foreign_keys_on(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/w.db", create=True)
    assert scalar(database, "PRAGMA journal_mode") == "wal"
    assert scalar(database, "PRAGMA foreign_keys") == 1
    database.close()


def test_foreign_keys_are_off_while_migrating_and_on_again_after_it(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL alters tables in place")
    with database.migrating() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 0
    for _ in range(3):
        with database.writing() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA legacy_alter_table").scalar() == 0


# --- work that is run again ---------------------------------------------------------------------------------


def test_a_deadlock_is_run_again_from_its_start(postgres: Database) -> None:
    with postgres.writing() as connection:
        insert_drift(connection, "a")
        insert_drift(connection, "b")
    both_hold_one = threading.Barrier(2)
    tries = {"ab": 0, "ba": 0}
    problems: list[BaseException] = []

    def lock(order: str) -> None:
        def work(connection: Connection) -> None:
            tries[order] += 1
            for path in order:
                statement = text("UPDATE etl_drift SET occurrences = occurrences + 1 WHERE json_path = :path")
                connection.execute(statement, {"path": path})
                if path == order[0] and tries[order] == 1:
                    both_hold_one.wait(timeout=10)

        try:
            postgres.run(work)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=lock, args=(order,)) for order in tries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(tries.values()) == [1, 2]
    assert [row["occurrences"] for row in rows(postgres, "SELECT occurrences FROM etl_drift")] == [3, 3]


def test_a_terminated_connection_is_replaced_and_the_work_run_again(postgres: Database, postgres_url: str) -> None:
    tries: list[int] = []

    def work(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        tries.append(pid)
        insert_drift(connection, "$.once")
        if len(tries) == 1:
            with psycopg.connect(postgres_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [pid])
        connection.execute(text("SELECT 1"))

    postgres.run(work)
    assert len(tries) == 2
    assert tries[0] != tries[1]
    assert scalar(postgres, "SELECT count(*) FROM etl_drift") == 1


def test_a_serialization_failure_is_run_again(postgres: Database) -> None:
    with postgres.writing() as connection:
        insert_drift(connection, "a")
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execute(text("SELECT * FROM etl_drift"))
        if len(tries) == 1:
            with postgres.writing() as other:
                other.execute(text("UPDATE etl_drift SET occurrences = 10"))
        connection.execute(text("UPDATE etl_drift SET occurrences = occurrences + 1"))

    postgres.run(work)
    assert len(tries) == 2
    assert scalar(postgres, "SELECT occurrences FROM etl_drift") == 11


@pytest.mark.parametrize("took_place", [True, False])
def test_a_commit_without_an_answer_is_asked_about_and_done_once(postgres: Database, took_place: bool) -> None:
    tries: list[int] = []
    lost: list[int] = []

    def work(connection: Connection) -> int:
        tries.append(1)
        insert_drift(connection, f"$.{len(tries)}")
        return len(tries)

    def commit(connection: Connection) -> None:
        if tries and not lost:
            lost.append(1)
            driver: Any = connection.connection.dbapi_connection
            if took_place:
                driver.commit()
            driver.close()
            raise dbapi_error(None, invalidated=True)

    event.listen(postgres.engine, "commit", commit)
    try:
        assert postgres.run(work) == (1 if took_place else 2)
    finally:
        event.remove(postgres.engine, "commit", commit)
    assert rows(postgres, "SELECT json_path FROM etl_drift") == [{"json_path": "$.1" if took_place else "$.2"}]


def test_a_server_that_falls_silent_is_given_up_on(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.database.STATEMENT_SECONDS", 0.3)
    monkeypatch.setattr("etl.database.RETRY_SECONDS", 0.1)
    with pytest.raises(WarehouseUnavailable, match="no answer within"):
        postgres.run(lambda c: c.execute(text("SELECT pg_sleep(60)")))
    monkeypatch.undo()
    assert postgres.run(lambda c: c.execute(text("SELECT 1")).scalar_one()) == 1


def test_a_lost_server_is_not_waited_for_once_the_process_is_told_to_stop(postgres_url: str) -> None:
    stop = threading.Event()
    database = Database(postgres_url, stop=stop)
    stop.set()
    began = time.monotonic()
    with pytest.raises(WarehouseUnavailable):
        database.run(lambda _: (_ for _ in ()).throw(dbapi_error("57P01")))
    assert time.monotonic() - began < 10
    database.close()


def test_times_are_read_in_utc_whatever_the_zone_of_the_database(postgres: Database) -> None:
    query = text("SELECT CAST('0001-01-01 00:00:00Z' AS timestamptz), CAST('9999-12-31 23:59:59Z' AS timestamptz)")
    with postgres.engine.connect() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.rollback()
    for zone in ("Etc/GMT+12", "Pacific/Kiritimati"):
        postgres.run(lambda c, zone=zone: c.execute(text(f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'")))  # type: ignore[misc]
        postgres.close()
        assert postgres.read(lambda c: [value.year for value in c.execute(query).one()]) == [1, 9999]
    postgres.run(lambda c: c.execute(text(f'ALTER DATABASE "{name}" RESET timezone')))


def test_what_cannot_succeed_is_not_run_again(database: Database) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        database.run(work)
    assert len(tries) == 1


def test_work_that_always_meets_a_deadlock_ends_as_warehouse_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.database.RETRY_SECONDS", 0.5)
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        raise dbapi_error("40P01")

    with pytest.raises(WarehouseUnavailable):
        database.run(work)
    assert (len(tries) == 1) == database.is_sqlite, "SQLite has waited already"
    assert len(tries) < 8


class _Driver(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("said the driver")
        self.sqlstate = sqlstate


def dbapi_error(sqlstate: str | None, *, invalidated: bool = False) -> OperationalError:
    return OperationalError("SELECT 1", {}, _Driver(sqlstate), connection_invalidated=invalidated)


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("40001", True),
        ("40P01", True),
        ("55P03", True),
        ("57P01", True),
        ("57P02", True),
        ("57P03", True),
        ("08006", True),
        ("08P01", True),
        ("23505", False),
        ("53100", False),
        ("57014", False),
        ("28P01", False),
        (None, False),
    ],
)
def test_only_some_errors_are_passing_ones(sqlstate: str | None, expected: bool) -> None:
    assert is_transient(dbapi_error(sqlstate)) is expected
    assert is_transient(dbapi_error(sqlstate, invalidated=True))


def test_errors_of_others_are_not_passing() -> None:
    assert not is_transient(None)
    assert not is_transient(ValueError())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True),
        (sqlite3.SQLITE_LOCKED, True),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_CORRUPT, False),
    ],
)
def test_a_busy_sqlite_file_is_passing_and_a_full_disk_is_not(code: int, expected: bool) -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    assert is_transient(OperationalError("SELECT 1", {}, error)) is expected


# --- errors and names ---------------------------------------------------------------------------------------


def test_the_name_of_a_warehouse_shows_no_password() -> None:
    database = Database(
        f"postgresql://user:{SECRET}@127.0.0.1:1/w?sslpassword={SECRET}&password={SECRET}&sslmode=prefer"
    )
    assert SECRET not in database.name
    assert "127.0.0.1:1/w" in database.name
    assert "sslmode=prefer" in database.name
    assert Database("postgresql://127.0.0.1/w", schema="sales").name.endswith("/w schema sales")


def test_an_unreachable_warehouse_is_a_sentence_without_its_password() -> None:
    database = Database(f"postgresql://user:{SECRET}@127.0.0.1:1/w?password={SECRET}")
    for verb in (lambda: database.run(now), lambda: database.reading().__enter__()):
        with pytest.raises(WarehouseUnavailable) as caught:
            verb()
        assert "127.0.0.1:1/w" in str(caught.value)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_error_text_holds_no_statement_and_no_parameters(database: Database) -> None:
    sql = "SELECT 1 / 0" if not database.is_sqlite else "SELECT abs(-9223372036854775807 - 1)"
    with pytest.raises(Exception) as caught, database.writing() as connection:
        connection.execute(text(f"{sql}, CAST(:p AS text)"), {"p": SECRET})
    if isinstance(caught.value, WarehouseUnavailable):
        assert SECRET not in str(caught.value)
        assert "SELECT" not in str(caught.value)
    with pytest.raises(WarehouseUnavailable) as lost, database.writing():
        raise OperationalError("INSERT INTO x VALUES (:p)", {"p": SECRET}, _Driver("53100"))
    assert str(lost.value).endswith("said the driver")
    assert SECRET not in str(lost.value)


def test_a_missing_right_is_the_warehouses_fault_and_a_wrong_statement_a_bug(postgres: Database) -> None:
    class NotAllowed(Exception):
        sqlstate = "42501"

    with pytest.raises(WarehouseUnavailable, match="denied"), postgres.writing():
        raise ProgrammingError("SELECT 1", {}, NotAllowed("permission denied for table x"))
    with pytest.raises(ProgrammingError), postgres.writing() as connection:
        connection.execute(text("SELECT * FROM no_such_table"))


# --- the clock ----------------------------------------------------------------------------------------------


def test_now_is_the_databases_clock_plus_the_offset(warehouse_url: str) -> None:
    for offset in (timedelta(0), timedelta(days=3), timedelta(days=-400)):
        database = Database(warehouse_url, clock_offset=offset)
        with database.reading() as connection:
            moment = now(connection)
        with database.writing() as connection:
            later = now(connection)
        assert moment.tzinfo is UTC
        assert abs(moment - offset - datetime.now(UTC)) < timedelta(seconds=10)
        assert timedelta(0) <= later - moment < timedelta(seconds=10)
        database.close()


def test_the_clock_is_read_once_a_transaction_and_only_when_it_is_asked_for(database: Database) -> None:
    with database.writing() as connection:
        began = datetime.now(UTC)
        time.sleep(0.02)
        first = now(connection)
        assert first > began, "a lock may have been waited for before"
        assert now(connection) == first
    with database.writing() as connection:
        time.sleep(0.02)
        assert now(connection) > first


@pytest.mark.parametrize(
    ("stored", "on_sqlite"),
    [
        (datetime(2026, 1, 1, 12, tzinfo=UTC), "2026-01-01 12:00:00.000000"),
        (datetime.fromisoformat("2026-01-01T12:00:00.000001+05:30"), "2026-01-01 06:30:00.000001"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01 00:00:00.000000"),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "9999-12-31 23:59:59.999999"),
    ],
)
def test_times_are_stored_in_utc_and_come_back_in_utc(database: Database, stored: datetime, on_sqlite: str) -> None:
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL TIME ZONE 'Asia/Kolkata'"))
            if stored.year in (1, 9999):
                connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
        insert_drift(connection, "$.x")
        connection.execute(etl_drift.update().values(last_seen_at=stored))
        found = connection.execute(etl_drift.select()).one().last_seen_at
    assert found == stored
    assert found.tzinfo is UTC
    if database.is_sqlite:
        assert scalar(database, "SELECT last_seen_at FROM etl_drift") == on_sqlite


def test_a_time_without_a_zone_does_not_reach_the_warehouse(database: Database) -> None:
    with pytest.raises((ValueError, StatementError), match="without a zone"), database.writing() as connection:
        connection.execute(etl_drift.update().values(last_seen_at=datetime(2026, 1, 1)))  # noqa: DTZ001
    assert UtcTime().process_bind_param(None, cast(Any, None)) is None


# --- ways that differ ---------------------------------------------------------------------------------------


def test_nothing_is_prepared_on_the_server(postgres: Database) -> None:
    """PgBouncer in transaction mode gives each transaction another server connection."""
    with postgres.writing() as connection:
        for number in range(12):
            connection.execute(text("SELECT :n + 1"), {"n": number})
            connection.execute(
                text("SELECT count(*) FROM etl_drift WHERE occurrences = :n"), [{"n": number}] * 1
            ).scalar()
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0


def test_a_transaction_leaves_no_setting_behind_in_its_session(postgres: Database) -> None:
    sales = Database(
        postgres.engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        schema="sales",
        connections=1,
    )
    with sales.writing() as connection:
        assert connection.execute(text("SHOW search_path")).scalar_one() == "sales"
        raw = cast(psycopg.Connection[Any], connection.connection.driver_connection)
    found = raw.execute("SHOW search_path").fetchone()
    raw.rollback()
    assert found == ('"$user", public',)
    sales.close()


@pytest.mark.parametrize(
    "name", ["a b.db", "100%.db", "a%20b.db", "what?.db", "a#b.db", "é.db", "a'b;c.db", "a&b.db"]
)
def test_a_sqlite_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dir %3F #1"
    url = f"sqlite:///{quote(str(folder))}/{quote(name)}"
    database = Database(url, create=True)
    schema.migrate(database)
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 0
    assert database.name == f"sqlite:///{folder}/{name}"
    database.close()
    assert [path.name for path in folder.iterdir()] == [name]
    again = Database(url)
    with again.reading() as connection:
        schema.check_current(connection)
    again.close()


def test_parameters_of_a_sqlite_url_are_refused_instead_of_naming_another_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="%3F"):
        Database(f"sqlite:///{tmp_path}/w.db?mode=ro", create=True)


def test_a_missing_sqlite_file_is_named_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "missing.db"
    database = Database(f"sqlite:///{path}")
    for verb in (lambda: database.run(now), lambda: database.reading().__enter__()):
        with pytest.raises(SchemaNotCurrent, match="checkly-etl migrate") as caught:
            verb()
        assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_an_unavailable_warehouse(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one" * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(WarehouseUnavailable, match="not a database"), database.reading() as connection:
        connection.execute(text("SELECT * FROM test_sessions"))
    database.close()


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_rows_are_found_by_a_set_of_ids_in_one_look(database: Database, count: int) -> None:
    ids = [uuid(number) for number in range(1, 601)]
    with database.writing() as connection:
        bulk.insert(connection, error_groups, [{"error_group_id": id_} for id_ in ids])
        is_asked_for = is_one_of(connection, error_groups.c.error_group_id, ids[:count])
        found = connection.execute(select(error_groups.c.error_group_id).where(is_asked_for)).scalars().all()
    assert sorted(found) == sorted(ids[:count])


def test_a_set_of_ids_is_one_value_for_the_server(postgres: Database) -> None:
    # What is only cast to an array would be read anew for each row that it is compared with.
    with postgres.reading() as connection:
        is_asked_for = is_one_of(connection, error_groups.c.error_group_id, [uuid(1), uuid(2)])
        plan = "\n".join(
            connection.execute(
                text(f"EXPLAIN SELECT 1 FROM error_groups WHERE {_with_values(connection, is_asked_for)}")
            ).scalars()
        )
    assert f"ANY ('{{{uuid(1)},{uuid(2)}}}'::uuid[])" in plan


def _with_values(connection: Connection, clause: ColumnElement[bool]) -> str:
    compiled = clause.compile(connection.engine)
    return str(compiled) % {name: f"'{value}'" for name, value in compiled.params.items()}


def test_chunks_cover_everything_once() -> None:
    assert [list(some) for some in chunks(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert list(chunks([])) == []
    assert max(len(some) for some in chunks(range(2000))) == 500


def test_the_urls_driver_is_ours_whatever_it_says(postgres: Database) -> None:
    url = make_url(str(postgres.engine.url))
    assert url.drivername == "postgresql+psycopg"


def test_a_connection_that_is_cut_while_it_is_pinged_is_a_lost_one_and_no_bug(postgres_url: str) -> None:
    database = Database(postgres_url)
    raw = database.engine.raw_connection()
    driver: Any = raw.dbapi_connection
    driver.pgconn.send_query(b"SELECT pg_sleep(20)")  # its answer never comes
    with pytest.raises(psycopg.OperationalError, match="was lost"):
        driver.autocommit = True
    assert driver.closed
    raw.invalidate()
    database.close()

"""The schema: up, down and up again; one migration at a time; a failed one changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.schema import CreateTable

from etl import schema
from etl.database import Database
from etl.errors import ConfigError, SchemaNotCurrent, WarehouseUnavailable
from etl.tables import metadata
from tests.conftest import rows, scalar

ROOT = Path(__file__).parent.parent
SESSION = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    """A database without our schema."""
    opened = Database(empty_url, create=True)
    yield opened
    opened.close()


def alembic(database: Database, verb: Callable[..., Any], *arguments: str) -> None:
    with database.migrating() as connection:
        config = schema.alembic_config()
        config.attributes["connection"] = connection
        verb(config, *arguments)


def names(database: Database) -> set[str]:
    with database.reading() as connection:
        found = inspect(connection)
        return {*found.get_table_names(), *found.get_view_names()}


def check(database: Database) -> None:
    with database.reading() as connection:
        schema.check_current(connection)


def add_session(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(
            text(
                "INSERT INTO test_sessions (test_session_id, status, is_final, started_at, first_exported_at, "
                "exported_at, payload_sha256) VALUES (:id, 'PASSED', true, :t, :t, :t, '')"
            ),
            {"id": SESSION, "t": "2026-01-01 00:00:00.000000+00"[: 26 if database.is_sqlite else 40]},
        )


# --- up and down --------------------------------------------------------------------------------------------


def test_the_schema_goes_up_down_and_up_again(empty: Database) -> None:
    expected = {*metadata.tables, *schema.view_texts(), schema.VERSION_TABLE}
    assert schema.migrate(empty) is True
    assert names(empty) == expected
    alembic(empty, command.downgrade, "base")
    assert names(empty) == {schema.VERSION_TABLE}
    with pytest.raises(SchemaNotCurrent, match="checkly-etl migrate"):
        check(empty)
    alembic(empty, command.upgrade, "head")
    assert names(empty) == expected
    check(empty)
    assert schema.migrate(empty) is False


def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    alembic(database, command.check)


def test_a_check_sees_a_missing_column(database: Database) -> None:
    with database.migrating() as connection:
        schema.drop_views(connection)
        connection.execute(text("ALTER TABLE test_sessions DROP COLUMN github_job"))
    with pytest.raises(Exception, match="github_job"):
        alembic(database, command.check)


def test_tables_of_others_are_left_alone(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE invoices (id integer PRIMARY KEY, total integer)"))
        connection.execute(text("CREATE VIEW v_invoices AS SELECT * FROM invoices"))
        connection.execute(text("CREATE INDEX ix_invoices_total ON invoices (total)"))
        connection.execute(text("DELETE FROM etl_views"))
    alembic(database, command.check)
    with pytest.raises(SchemaNotCurrent):
        check(database)
    with database.writing() as connection:  # as if the views had been made by an older release
        for name in schema.view_texts():
            connection.execute(text(f"INSERT INTO etl_views SELECT '{name}', 'old'"))
    assert schema.migrate(database) is True
    assert {"invoices", "v_invoices"} <= names(database)
    alembic(database, command.downgrade, "base")
    assert names(database) == {"invoices", "v_invoices", schema.VERSION_TABLE}


def test_every_migration_has_the_number_of_its_file_and_follows_the_one_before() -> None:
    """The newest revision is known by the names of the files alone."""
    files = sorted((ROOT / "migrations" / "versions").glob("[0-9]*.py"))
    numbers = [file.name.partition("_")[0] for file in files]
    assert numbers == [f"{number:04d}" for number in range(1, len(files) + 1)]
    assert numbers[-1] == schema.HEAD
    wrong = []
    for file, number, before in zip(files, numbers, [None, *numbers], strict=False):
        source = file.read_text(encoding="utf-8")
        expected = [f'revision = "{number}"', f"down_revision = {before!r}".replace("'", '"')]
        wrong += [f"{file.name} lacks {line}" for line in expected if line not in source]
    assert wrong == []


def test_a_migration_that_leaves_a_view_out_is_no_migration(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten constant gave a warehouse without a single view, and `migrate` said "migrated"."""
    monkeypatch.setattr(schema, "create_views", lambda connection, grants: None)
    with pytest.raises(AssertionError, match=r"left no whole schema: .*v_checks.*v_freshness"):
        schema.migrate(empty)
    assert names(empty) == set(), "nothing was changed"


def test_alembic_works_by_its_ini_file_in_a_checkout(empty_url: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("CHECKLY_")}
    env["CHECKLY_ETL_WAREHOUSE_URL"] = empty_url
    for arguments in (["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "alembic", *arguments],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    database = Database(empty_url)
    check(database)
    assert schema.migrate(database) is False
    database.close()


def test_alembic_ini_and_the_config_without_a_file_name_the_same_folder() -> None:
    ini = Config(str(ROOT / "alembic.ini"))
    named = schema.alembic_config().get_main_option("script_location")
    assert ini.get_main_option("script_location") == named == str(ROOT / "migrations")


def test_migrations_refuse_to_be_written_as_a_script(empty: Database) -> None:
    with pytest.raises(SystemExit, match="need the database"):
        command.upgrade(schema.alembic_config(), "head", sql=True)


# --- comments -----------------------------------------------------------------------------------------------


def test_every_table_and_column_says_what_it_means() -> None:
    for table in metadata.tables.values():
        assert table.comment
        assert [c.name for c in table.columns if not c.comment] == []


def test_postgresql_shows_the_comments(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no comments")
    with database.reading() as connection:
        found = inspect(connection)
        for table in metadata.tables.values():
            assert found.get_table_comment(table.name)["text"] == table.comment
            shown = {c["name"]: c.get("comment") for c in found.get_columns(table.name)}
            assert shown == {c.name: c.comment for c in table.columns}
    for name, source in schema.view_texts().items():
        comment = scalar(database, f"SELECT obj_description('{name}'::regclass)")
        assert source.startswith(f"-- {comment}\n")


# --- is it current? -----------------------------------------------------------------------------------------


def test_without_a_schema_the_command_to_run_is_named(empty: Database) -> None:
    with pytest.raises(SchemaNotCurrent, match=r"no schema yet.*checkly-etl migrate"):
        check(empty)


def test_an_older_schema_wants_a_migration_and_a_newer_one_a_newer_program(database: Database) -> None:
    check(database)
    for revision, words in (("0000", "checkly-etl migrate"), ("9999", "pip install --upgrade")):
        with database.writing() as connection:
            connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'"))
        with pytest.raises(SchemaNotCurrent, match=words) as caught:
            check(database)
        assert revision in str(caught.value)
        assert schema.HEAD in str(caught.value)


def test_a_newer_schema_is_not_touched(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    before = names(database)
    with pytest.raises(SchemaNotCurrent, match="nothing was changed"):
        schema.migrate(database)
    assert names(database) == before
    assert scalar(database, f"SELECT version_num FROM {schema.VERSION_TABLE}") == "9999"


def test_to_know_it_takes_no_alembic(warehouse_url: str) -> None:
    program = (
        "import sys; from etl.database import Database; from etl import schema\n"
        f"database = Database({warehouse_url!r})\n"
        "with database.reading() as connection: schema.check_current(connection)\n"
        "database.close()\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True)


def test_a_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/missing.db")
    with pytest.raises(SchemaNotCurrent, match="checkly-etl migrate"):
        check(database)
    with pytest.raises(SchemaNotCurrent):
        schema.migrate(database)
    assert list(tmp_path.iterdir()) == []


# --- views --------------------------------------------------------------------------------------------------


def test_views_are_made_anew_when_their_text_changes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = schema.view_texts()
    changed = {
        **texts,
        "v_checks": texts["v_checks"].replace("last_verdict\n", "last_verdict, '50%' AS \"100%\"\n", 1),
        # Made of one that comes after it in the alphabet, and named in a comment only: v_freshness.
        "v_a": "-- It's 100% new. Not v_zzz.\nSELECT check_key FROM v_checks -- v_zzz",
        "v_zzz": "-- One more.\nSELECT * FROM v_a",
    }
    del changed["v_freshness"]
    monkeypatch.setattr(schema, "view_texts", lambda: dict(sorted(changed.items())))
    with pytest.raises(SchemaNotCurrent, match="checkly-etl migrate"):
        check(database)
    assert schema.migrate(database) is True
    check(database)
    assert names(database) >= {"v_a", "v_zzz", "v_checks"}
    assert "v_freshness" not in names(database)
    assert rows(database, "SELECT * FROM v_checks") == []
    assert rows(database, "SELECT * FROM v_zzz") == []
    monkeypatch.undo()
    assert schema.migrate(database) is True
    check(database)
    assert names(database) == {*metadata.tables, *texts, schema.VERSION_TABLE}


def test_grants_on_views_are_kept(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no roles")
    role = f'Analyst "{os.getpid()}" 100%'
    quoted = '"' + role.replace('"', '""') + '"'

    def say(connection: Any, sql: str) -> None:
        connection.exec_driver_sql(sql.replace("%", "%%"))

    with database.writing() as connection:
        say(connection, f"CREATE ROLE {quoted}")
        say(connection, f"GRANT SELECT ON v_checks TO {quoted} WITH GRANT OPTION")
        say(connection, "GRANT SELECT ON v_freshness TO PUBLIC")
        say(connection, "UPDATE etl_views SET sha256 = 'old' WHERE view_name = 'v_checks'")
    try:
        grants = "SELECT relname, relacl::text FROM pg_class WHERE relname IN ('v_checks', 'v_freshness') ORDER BY 1"
        before = rows(database, grants)
        made = "SELECT 'v_checks'::regclass::oid"
        old = scalar(database, made)
        assert schema.migrate(database) is True
        assert scalar(database, made) != old
        assert rows(database, grants) == before
        held = text("SELECT has_table_privilege(:role, 'v_checks', 'SELECT WITH GRANT OPTION')")
        with database.reading() as connection:
            assert connection.execute(held, {"role": role}).scalar_one() is True
    finally:
        with database.writing() as connection:
            say(connection, f"DROP OWNED BY {quoted}")
            say(connection, f"DROP ROLE {quoted}")


def test_a_view_of_others_that_needs_ours_stops_the_migration_and_nothing_has_changed(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("CREATE VIEW mine AS SELECT check_key FROM v_checks CROSS JOIN v_freshness"))
        connection.execute(text("UPDATE etl_views SET sha256 = 'old' WHERE view_name = 'v_checks'"))
    before = names(database)
    if database.is_sqlite:  # there a view is looked up when it is read
        assert schema.migrate(database) is True
        assert rows(database, "SELECT * FROM mine") == []
        return
    with pytest.raises(
        WarehouseUnavailable, match=r"nothing was changed.*mine reads v_checks and v_freshness"
    ) as told:
        schema.migrate(database)
    assert "CASCADE" not in str(told.value)
    assert names(database) == before
    assert scalar(database, "SELECT sha256 FROM etl_views WHERE view_name = 'v_checks'") == "old"


def test_a_role_that_does_not_own_the_schema_is_told_to_migrate_as_the_one_that_does(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no roles")
    role = f"etl_guest_{os.getpid()}"
    with database.writing() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        connection.execute(text("UPDATE etl_views SET sha256 = 'old' WHERE view_name = 'v_checks'"))
    guest = Database(database.engine.url.set(username=role).render_as_string(hide_password=False))
    try:
        with pytest.raises(
            WarehouseUnavailable, match=r"nothing was changed: must be owner .* as the role that owns"
        ):
            schema.migrate(guest)
    finally:
        guest.close()
        with database.writing() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


# --- several at once ----------------------------------------------------------------------------------------


def test_two_processes_may_migrate_at_once(empty_url: str) -> None:
    program = (
        "import sys; from etl.database import Database; from etl import schema\n"
        f"database = Database({empty_url!r}, create=True)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(schema.migrate(database)); database.close()\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    ended = [one.communicate(timeout=60) for one in started]
    assert [err for _, err in ended] == ["", "", ""]
    assert sorted(out for out, _ in ended) == ["False\n", "False\n", "True\n"], "who waited has nothing left to do"
    database = Database(empty_url)
    check(database)
    database.close()


def test_a_table_in_use_makes_the_migration_fail_soon_and_whole(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("BEGIN IMMEDIATE waits as for any writer")
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_views SET sha256 = 'old' WHERE view_name = 'v_checks'"))
    before = names(database)
    with database.reading() as reader:
        reader.execute(text("SELECT * FROM v_checks"))
        began = time.monotonic()
        with pytest.raises(WarehouseUnavailable, match=r"nothing was changed.*in use"):
            schema.migrate(database)
        assert 3 < time.monotonic() - began < 10
    assert names(database) == before
    assert schema.migrate(database) is True


def test_what_is_current_is_not_locked_to_see_so(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_views SET sha256 = sha256"))
        began = time.monotonic()
        assert schema.migrate(database) is False
        assert time.monotonic() - began < 10


def test_a_sqlite_that_is_too_old_is_told_before_anything_is_made(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not empty.is_sqlite:
        pytest.skip("PostgreSQL's own version is the server's, and that one is not old")
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigError, match=r"SQLite 3\.35\.0 or newer is needed"):
        schema.migrate(empty)
    assert names(empty) == set()


def test_a_view_that_was_dropped_by_hand_is_made_again(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("DROP VIEW v_freshness"))
    assert schema.migrate(database), "the recorded hashes alone say that it is current"
    assert rows(database, "SELECT * FROM v_freshness") == []
    assert not schema.migrate(database)


def test_a_migration_that_makes_no_view_changes_nothing_and_names_it(empty: Database) -> None:
    def lose(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        is_of_it = statement.startswith(('CREATE VIEW "v_freshness"', 'COMMENT ON VIEW "v_freshness"'))
        return ("SELECT 1" if is_of_it else statement), parameters

    event.listen(Engine, "before_cursor_execute", lose, retval=True)
    try:
        with pytest.raises(AssertionError, match=r"no whole schema: v_freshness$"):
            schema.migrate(empty)
    finally:
        event.remove(Engine, "before_cursor_execute", lose)
    assert names(empty) == set()


def test_a_table_may_be_rebuilt_on_sqlite_without_losing_its_children(database: Database) -> None:
    """The dropped old table must not take its children along (ON DELETE CASCADE)."""
    add_session(database)
    with database.writing() as connection:
        sql = "INSERT INTO error_groups (error_group_id) VALUES (:id)"
        connection.execute(text(sql), {"id": SESSION})
        connection.execute(text("INSERT INTO test_session_error_groups VALUES (:id, :id)"), {"id": SESSION})
        connection.execute(text("CREATE VIEW mine AS SELECT * FROM v_checks"))
    with database.migrating() as connection:
        if not database.is_sqlite:
            connection.execute(text("DROP VIEW mine"))
        schema.drop_views(connection)
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table(
            "test_sessions", recreate="always" if database.is_sqlite else "auto"
        ) as batch:
            batch.alter_column("status", server_default="PASSED")
        schema.create_views(connection, [])
    assert scalar(database, "SELECT count(*) FROM test_session_error_groups") == 1
    with database.writing() as connection:
        connection.execute(text("DELETE FROM test_sessions"))
    assert scalar(database, "SELECT count(*) FROM test_session_error_groups") == 0, "and they still follow it"


def test_a_migration_that_loses_parents_is_taken_back(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL holds its foreign keys all the time")
    add_session(database)
    with pytest.raises(AssertionError, match="foreign keys"), database.migrating() as connection:
        connection.execute(text("INSERT INTO test_session_error_groups VALUES ('a', 'b')"))
    assert scalar(database, "SELECT count(*) FROM test_session_error_groups") == 0


# --- schemas of PostgreSQL ----------------------------------------------------------------------------------


def test_a_schema_of_its_own_holds_everything_and_nothing_else_does(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        pytest.skip("SQLite has no schemas")
    ours = Database(empty_url, schema="checkly_sales")
    with pytest.raises(SchemaNotCurrent, match="no schema yet"):
        check(ours)
    begun = threading.Barrier(2)
    told: list[bool] = []

    def migrate() -> None:
        begun.wait()
        told.append(schema.migrate(ours))

    threads = [threading.Thread(target=migrate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False, True]
    assert schema.migrate(ours) is False
    check(ours)
    alembic(ours, command.check)
    where = (
        "SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class WHERE relname LIKE 'v\\_%' "
        "OR relname LIKE 'etl\\_%' OR relname LIKE '%test\\_session%' OR relname LIKE '%error_group%'"
    )
    assert [list(row.values()) for row in rows(ours, where)] == [["checkly_sales"]]
    add_session(ours)

    public = Database(empty_url)
    with pytest.raises(SchemaNotCurrent, match="no schema yet"):
        check(public)
    assert schema.migrate(public) is True
    assert scalar(public, "SELECT count(*) FROM test_sessions") == 0
    assert scalar(ours, "SELECT count(*) FROM test_sessions") == 1
    alembic(public, command.downgrade, "base")
    check(ours)
    ours.close()
    public.close()


def test_a_role_that_may_not_create_schemas_can_use_the_one_that_it_was_given(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        pytest.skip("SQLite has no roles")
    role = f"etl_role_{os.getpid()}"
    admin = Database(empty_url)
    with admin.writing() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"CREATE SCHEMA given AUTHORIZATION {role}"))
        connection.execute(text(f"REVOKE ALL ON SCHEMA public FROM {role}"))
    limited = Database(empty_url, schema="given")
    from sqlalchemy import event

    event.listen(limited.engine, "begin", lambda c: c.exec_driver_sql(f"SET LOCAL ROLE {role}"))
    try:
        assert schema.migrate(limited) is True
        assert schema.migrate(limited) is False
        refused = Database(empty_url, schema="not_given")
        event.listen(refused.engine, "begin", lambda c: c.exec_driver_sql(f"SET LOCAL ROLE {role}"))
        with pytest.raises(WarehouseUnavailable, match=r"nothing was changed.*permission denied"):
            schema.migrate(refused)
        refused.close()
    finally:
        limited.close()
        with admin.writing() as connection:
            connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
            connection.execute(text(f"DROP ROLE {role}"))
        admin.close()


def test_ids_are_native_on_postgresql_and_text_on_sqlite(database: Database) -> None:
    with database.reading() as connection:
        ddl = str(CreateTable(metadata.tables["test_sessions"]).compile(connection))
        types = {c["name"]: str(c["type"]) for c in inspect(connection).get_columns("test_sessions")}
    assert types["test_session_id"] == ("VARCHAR(36)" if database.is_sqlite else "UUID")
    assert types["started_at"] == ("DATETIME" if database.is_sqlite else "TIMESTAMP")
    assert types["time_elapsed_ms"] in ("DOUBLE", "DOUBLE PRECISION")
    assert "started_at" in ddl

"""The schema's life: migrate, and know whether it is current.

Hides alembic (imported only to migrate) and the dialects of the views. Migrations and `env.py` live beside
the package in a checkout and inside it in a wheel. The views are data: one text a view in `views/*.sql`,
created after every upgrade in its transaction (those named etl_… are no contract). `words` translates what the two
dialects write in different ways.

Triggers (`triggers/*.sql`, one file a dialect) are kept the same way.
"""

from __future__ import annotations

import re
import sqlite3
from graphlib import TopologicalSorter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from etl.database import Database, is_transient
from etl.errors import ConfigError, SchemaNotCurrent, WarehouseUnavailable
from etl.tables import (
    etl_checks,
    etl_days,
    etl_rollup_error_group_impact,
    etl_rollup_test_session_summary,
    etl_touched_error_groups,
    etl_views,
)
from etl.words import MIGRATION_LOCK, in_dialect

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "etl_schema_version"
OLDEST_POSTGRESQL = 150000
OLDEST_SQLITE = (3, 35, 0)  # the first that knows AS MATERIALIZED, which views say

# They stand in migrations only: metadata knows no index that is another one on each dialect.
EXPRESSION_INDEXES = frozenset(
    {"ix_check_executions_ambiguous", "ix_check_executions_check", "ix_check_executions_day"}
)

Grant = tuple[str, str]  # (view, statement that restores it)

_PACKAGE = Path(__file__).parent


def _migrations() -> Path:
    """The folder of the migrations: inside of the package in a wheel, next to it in a checkout."""
    inside = _PACKAGE / "migrations"
    return inside if inside.is_dir() else _PACKAGE.parent / "migrations"


# The newest revision. From the names of the files: a constant would be forgotten, and alembic takes long to import.
HEAD = max(path.name for path in (_migrations() / "versions").glob("[0-9]*.py")).partition("_")[0]


def migrate(database: Database) -> bool:
    """Create the schema or bring it up to date; False if it was current already.

    Safe to run from several processes at once. Raises SchemaNotCurrent if it belongs to a newer release.
    """
    from alembic import command

    def look(connection: Connection) -> bool:
        check_server(connection)
        return _is_whole(connection)

    def upgrade(connection: Connection) -> bool:
        config = alembic_config()
        config.attributes["connection"] = connection
        try:
            lock(connection)
            if database.schema is not None:
                _create_schema(connection, database.schema)
            if _is_whole(connection):
                return False  # another process did it while we waited
            command.upgrade(config, "head")
            if differences := _differences(connection):
                raise AssertionError(f"the migration left no whole schema: {', '.join(differences)}")
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            # From nothing: a lock that was waited for in vain is not to be waited for again.
            raise _not_migrated(_reason(error)) from None
        return True

    return not database.read(look) and database.migrate(upgrade)


def _not_migrated(reason: str) -> WarehouseUnavailable:
    return WarehouseUnavailable(f"the schema could not be migrated, nothing was changed: {reason}")


def _reason(error: DBAPIError) -> str:
    """What the database says, without its hints: they are not for these tables and views (DROP … CASCADE)."""
    diagnosed = getattr(error.orig, "diag", None)
    told = filter(None, (getattr(diagnosed, name, None) for name in ("message_primary", "message_detail")))
    reason = " ".join((": ".join(told) or str(error.orig)).split())
    match getattr(error.orig, "sqlstate", None):
        case "55P03":  # lock_not_available
            return f"a table or view is in use ({reason}); run it again when nobody reads or writes there"
        case "42501":  # insufficient_privilege
            return f"{reason}; run checkly-etl migrate as the role that owns the tables and views"
    return reason


def _is_whole(connection: Connection) -> bool:
    return not _differences(connection)


def _differences(connection: Connection) -> list[str]:
    """Return which of the revision, the triggers and the views are missing, or differ from this program's.

    That includes views that were dropped by hand. (`check_current` runs in every pass and does not look for them.)
    """
    state, wanted = _state(connection), _wanted(connection)
    existing = set(inspect(connection).get_view_names())
    return sorted(dict(state.items() ^ wanted.items()).keys() | (view_texts().keys() - existing))


def lock(connection: Connection) -> None:
    """One migration at a time; then give up soon where a table is in use. For `migrate` and env.py."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL lock_timeout = '5min'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '4s'")


def _create_schema(connection: Connection, name: str) -> None:
    # Not IF NOT EXISTS alone: that needs the right to create schemas even where there is nothing to create.
    known = text("SELECT 1 FROM pg_namespace WHERE nspname = :name")
    if connection.execute(known, {"name": name}).first() is None:
        quoted = connection.dialect.identifier_preparer.quote_identifier(name)
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")


def check_current(connection: Connection) -> None:
    """One SELECT. Raises SchemaNotCurrent with the command to run."""
    try:
        state = _state(connection)
    except DBAPIError as error:
        if is_transient(error):
            raise
        hint = ""
        if getattr(error.orig, "sqlstate", None) == "42501":  # insufficient_privilege
            hint = "; a role that only reads needs SELECT on etl_views and etl_schema_version, and on the views"
        raise SchemaNotCurrent(f"the warehouse cannot be read: {error.orig}{hint}") from error
    if state == _wanted(connection):
        return
    revision = next((key for key, value in state.items() if not value), None)
    if revision is None:
        raise SchemaNotCurrent("the warehouse has no schema yet; create it with: checkly-etl migrate")
    if revision > HEAD:
        raise SchemaNotCurrent(
            f"the warehouse's schema ({revision}) is newer than this program's ({HEAD}); "
            "install the newer checkly-etl that migrated it: pip install --upgrade checkly-etl"
        )
    if revision == HEAD:
        raise SchemaNotCurrent(
            "the warehouse's views are another release's; bring it up to date with: checkly-etl migrate"
        )
    raise SchemaNotCurrent(
        f"the warehouse's schema ({revision}) is not this program's ({HEAD}); bring it up to date with: "
        "checkly-etl migrate"
    )


def alembic_config() -> Config:
    """Alembic's settings without a file: the same as alembic.ini says in a checkout."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


def refuse_newer(revision: str | None) -> None:
    """For env.py: an upgrade must not touch a schema that it does not know."""
    if revision is not None and revision > HEAD:
        raise SchemaNotCurrent(
            f"the warehouse's schema ({revision}) is newer than this program's ({HEAD}); nothing was changed"
        )


# --- views --------------------------------------------------------------------------------------------------


def view_texts() -> dict[str, str]:
    """The views by name, as they stand in `views/*.sql`."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted((_PACKAGE / "views").glob("*.sql"))}


def public_views() -> dict[str, str]:
    """Those of the contract: what is named etl_… is made for these, v_report_… for the report."""
    return {name: source for name, source in view_texts().items() if not name.startswith(("etl_", "v_report_"))}


def trigger_texts(dialect: str) -> list[str]:
    """The statements that create functions and triggers, in their order."""
    source = (_PACKAGE / "triggers" / f"{dialect}.sql").read_text(encoding="utf-8")
    statements = source.strip().split("\n\n")[1:]
    return [in_dialect(statement, dialect, f"triggers/{dialect}.sql") for statement in statements]


def drop_views(connection: Connection) -> list[Grant]:
    """Drop every view and trigger of ours, so that the tables below can change. Returns the grants to restore."""
    _drop_triggers(connection)
    existing = set(inspect(connection).get_view_names())
    ours = [name for name in _created_views(connection) if name in existing]
    grants = _view_grants(connection, ours) if connection.dialect.name == "postgresql" else []
    if connection.dialect.name == "postgresql" and ours:
        _refuse_readers(connection, ours)
        # In one statement: which of them needs which is then no matter.
        connection.exec_driver_sql("DROP VIEW " + ", ".join(f'"{name}"' for name in ours))
    else:
        for name in ours:
            connection.exec_driver_sql(f'DROP VIEW "{name}"')
    return grants


def _refuse_readers(connection: Connection, names: list[str]) -> None:
    """Views of others that read ours would have to go with them: that is their owners' to do."""
    readers: dict[str, list[str]] = {}
    for reader, name in connection.execute(text(_READERS), {"names": names}):
        readers.setdefault(reader, []).append(name)
    if readers:
        told = ", ".join(f"{reader} reads {' and '.join(read)}" for reader, read in readers.items())
        raise _not_migrated(
            f"views of yours depend on the exporter's: {told}. Save their definitions (pg_get_viewdef), drop them, "
            "migrate, and create them again"
        )


_READERS = """
    SELECT DISTINCT CAST(CAST(rule.ev_class AS regclass) AS text), ours.relname
    FROM pg_depend d
    JOIN pg_rewrite rule ON d.classid = CAST('pg_rewrite' AS regclass) AND rule.oid = d.objid
    JOIN pg_class ours ON d.refclassid = CAST('pg_class' AS regclass) AND ours.oid = d.refobjid
    JOIN pg_class reader ON reader.oid = rule.ev_class
    WHERE ours.relnamespace = CAST(current_schema() AS regnamespace) AND ours.relname = ANY(:names)
      AND NOT (reader.relnamespace = ours.relnamespace AND reader.relname = ANY(:names))
    ORDER BY 1, 2
"""


def create_views(connection: Connection, grants: list[Grant]) -> None:
    """Create every view and trigger, restore the grants, and remember the texts by their hashes.

    Rollups are dropped: another release may count otherwise.
    """
    connection.execute(etl_views.delete())
    if connection.dialect.name == "postgresql":
        # The functions keep the search path: of one schema, whoever writes, and from wherever.
        connection.exec_driver_sql("SELECT set_config('search_path', quote_ident(current_schema()), true)")
    for statement in trigger_texts(connection.dialect.name):
        _execute(connection, statement)
    drop_rollups(connection)
    for name, source in _in_order(view_texts()):
        _execute(connection, f'CREATE VIEW "{name}" AS\n{in_dialect(source, connection.dialect.name, name)}')
        if connection.dialect.name == "postgresql":
            comment = source.split("\n", 1)[0].removeprefix("--").strip().replace("'", "''")
            _execute(connection, f"COMMENT ON VIEW \"{name}\" IS '{comment}'")
    wanted = _wanted(connection)
    del wanted[HEAD]
    connection.execute(etl_views.insert(), [{"view_name": name, "sha256": wanted[name]} for name in wanted])
    for view, grant in grants:
        if view in wanted:
            _execute(connection, grant)


def drop_rollups(connection: Connection) -> None:
    """No view reads a rollup until `etl/rollups.py` has made it anew."""
    connection.execute(etl_checks.update().values(rolled_up_for=None, has_streaks=None))
    connection.execute(etl_days.update().values(is_rolled_up=False))
    connection.execute(etl_rollup_error_group_impact.delete())
    connection.execute(etl_touched_error_groups.delete())
    connection.execute(etl_rollup_test_session_summary.delete())


def _drop_triggers(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Their triggers go with them.
        ours = "SELECT proname FROM pg_proc WHERE pronamespace = CAST(current_schema() AS regnamespace)"
        drop = 'DROP FUNCTION "{}"() CASCADE'
    else:
        ours = "SELECT name AS proname FROM sqlite_master WHERE type = 'trigger'"
        drop = 'DROP TRIGGER "{}"'
    for name in connection.execute(
        text(f"SELECT proname FROM ({ours}) AS f WHERE proname LIKE 'etl_touch_%'")
    ).scalars():
        connection.exec_driver_sql(drop.format(name))


def _execute(connection: Connection, sql: str) -> None:
    # psycopg reads % as the beginning of a parameter, sqlite3 does not.
    connection.exec_driver_sql(sql.replace("%", "%%") if connection.dialect.name == "postgresql" else sql)


def _in_order(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Views after those that they are made of."""
    words = {name: set(re.findall(r"\w+", re.sub("--.*", "", source))) for name, source in texts.items()}
    needs = {name: words[name] & texts.keys() - {name} for name in texts}
    return [(name, texts[name]) for name in TopologicalSorter(needs).static_order()]


def _created_views(connection: Connection) -> list[str]:
    if not inspect(connection).has_table(etl_views.name):
        return []
    return list(connection.execute(etl_views.select().order_by(etl_views.c.view_name)).scalars())


def _view_grants(connection: Connection, names: list[str]) -> list[Grant]:
    rows = connection.execute(
        text(
            """
            SELECT c.relname, format('GRANT %s ON "%s" TO %s%s', acl.privilege_type, c.relname,
                          CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END,
                          CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
            FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) acl
            LEFT JOIN pg_roles r ON r.oid = acl.grantee
            WHERE c.relkind = 'v' AND c.relnamespace = CAST(current_schema() AS regnamespace)
              AND c.relname = ANY(:names) AND acl.grantee <> c.relowner
            """
        ),
        {"names": names},
    )
    return [(view, grant) for view, grant in rows]


# --- is it current? -----------------------------------------------------------------------------------------


def _wanted(connection: Connection) -> dict[str, str]:
    # Hashed in the dialect's words: a word that is mended makes the views new, too.
    dialect = connection.dialect.name
    digests = {
        name: sha256(in_dialect(source, dialect, name).encode()).hexdigest() for name, source in view_texts().items()
    }
    triggers = sha256("\n\n".join(trigger_texts(dialect)).encode()).hexdigest()
    return {HEAD: "", "triggers": triggers, **digests}


def _state(connection: Connection) -> dict[str, str]:
    """The revision (with an empty hash) and the views (with theirs); empty without a schema."""
    if connection.dialect.name == "postgresql":
        exists = "SELECT to_regclass('etl_views') IS NOT NULL"
    else:
        exists = "SELECT count(*) FROM sqlite_master WHERE name = 'etl_views'"
    if not connection.execute(text(exists)).scalar():
        return {}
    rows = connection.execute(
        text(f"SELECT version_num, '' FROM {VERSION_TABLE} UNION ALL SELECT view_name, sha256 FROM etl_views")
    )
    return dict(rows.all())


def check_server(connection: Connection) -> None:
    """Raises ConfigError for a PostgreSQL or SQLite that is too old, or a database that is not UTF8."""
    if connection.dialect.name != "postgresql":
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            needed = ".".join(map(str, OLDEST_SQLITE))
            raise ConfigError(
                f"SQLite {needed} or newer is needed, this Python has {sqlite3.sqlite_version}: use a newer Python"
            )
        return
    version, encoding = connection.execute(
        text("SELECT current_setting('server_version_num')::int, current_setting('server_encoding')")
    ).one()
    if version < OLDEST_POSTGRESQL:
        raise ConfigError(
            f"PostgreSQL {OLDEST_POSTGRESQL // 10000} or newer is needed; this server is version {version // 10000}"
        )
    if encoding != "UTF8":
        raise ConfigError(f"the warehouse's encoding is {encoding}; create the database with ENCODING 'UTF8'")

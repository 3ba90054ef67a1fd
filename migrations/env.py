"""How migrations run: in one transaction, behind one lock, with the views put aside and back.

PostgreSQL: the first statement waits up to five minutes for an advisory lock (another process may be
migrating); then a table that is in use for more than four seconds makes the migration fail as a whole
rather than queue every reader up behind it. SQLite: BEGIN IMMEDIATE does both.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

from alembic import context
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from etl import config as settings
from etl import schema
from etl.database import Database
from etl.tables import metadata


def main() -> None:
    """Entry point: alembic runs this file for every command that needs a database."""
    if context.is_offline_mode():
        raise SystemExit("checkly-etl migrations need the database: views and their grants are read from it")
    connection: Connection | None = context.config.attributes.get("connection")
    if connection is not None:
        run(connection)
        return
    warehouse = settings.load(None, os.environ).warehouse
    database = Database(warehouse.url.reveal(), schema=warehouse.schema, create=True)
    try:
        with database.migrating() as own:
            run(own)
    finally:
        database.close()


def run(connection: Connection) -> None:
    """Run whatever alembic's command asks for, inside of the caller's transaction."""
    schema.lock(connection)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=schema.VERSION_TABLE,
        include_name=_is_ours,
        process_revision_directives=_number_the_revision,
        compare_type=True,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    migration = context.get_context()
    schema.refuse_newer(migration.get_current_revision())
    grants = schema.drop_views(connection) if _changes_the_schema() else None
    with warnings.catch_warnings():
        # On SQLite every reflection of a table with an index over an expression: those are not compared anyway.
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index")
        context.run_migrations()
    if grants is not None and migration.get_current_revision() == schema.HEAD:
        schema.create_views(connection, grants)


def _changes_the_schema() -> bool:
    try:
        context.get_revision_argument()
    except KeyError:  # check, current, revision: no destination
        return False
    return True


def _is_ours(name: str | None, type_: str, parents: Any) -> bool:
    if type_ == "index":
        return name not in schema.EXPRESSION_INDEXES
    # A warehouse may hold other tables: they are none of our business.
    return type_ != "table" or name in metadata.tables


def _number_the_revision(migration: MigrationContext, revision: Any, directives: Iterable[MigrationScript]) -> None:
    """0001, 0002 …: file names in the order in which they run."""
    for script in directives:
        head = context.script.get_current_head()
        script.rev_id = f"{int(head or 0) + 1:04d}"


main()

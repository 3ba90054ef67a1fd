"""Writes docs/warehouse.md from the comments of tables, columns and views: `make docs`. A test keeps it current."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path

from sqlalchemy import Table, inspect
from sqlalchemy.dialects import postgresql

from etl import schema
from etl.database import Database
from etl.tables import metadata

TARGET = Path(__file__).parent / "warehouse.md"
HEAD = """\
# The warehouse

Generated from the comments in `etl/tables.py` and `etl/views` by `make docs`; on PostgreSQL BI tools show the same.

Types are PostgreSQL's; keys are bold. On SQLite times are text, `YYYY-MM-DD HH:MM:SS.ffffff` in UTC, so that their
order is that of time; ids are text of 36 characters, booleans 0 and 1, JSON is text. Columns that end in `_ms` are
milliseconds. One name means one thing everywhere, so that `JOIN … USING (test_session_id)` works.

"""


def text() -> str:
    """The whole document."""
    ours = [table for table in metadata.sorted_tables if not table.name.startswith("etl_")]
    operation = [table for table in metadata.sorted_tables if table.name.startswith("etl_")]
    parts = [HEAD, "## How the tables hang together\n\n", *_diagram(ours), "\n## Tables\n\n"]
    for table in ours:
        parts += _table(table)
    parts.append("## Views\n\n")
    parts += _views(schema.public_views())
    parts.append("## Views of the report\n\n`checkly-etl report` reads these beside the ones above. They are no ")
    parts.append("contract: a release may change them.\n\n")
    parts += _views({name: source for name, source in schema.view_texts().items() if name.startswith("v_report_")})
    parts.append("## Tables of operation\n\nThe exporter's own; only `etl_queue`, `etl_runs`, `etl_accounts`, ")
    parts.append("`etl_payloads` and `etl_drift` are for others to read.\n\n")
    for table in sorted(operation, key=lambda table: table.name):
        parts += _table(table)
    return "".join(parts).rstrip() + "\n"


def _diagram(tables: list[Table]) -> Iterator[str]:
    yield "```mermaid\nerDiagram\n"
    for table in tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.column.table.name):
            yield f"    {key.column.table.name} ||--o{{ {table.name} : {key.column.name}\n"
    yield "    test_session_results }o--o| check_executions : execution_no\n```\n"


def _table(table: Table) -> Iterator[str]:
    yield f"### {table.name}\n\n{table.comment}\n\n| Column | Type | Null | |\n| --- | --- | --- | --- |\n"
    for column in table.columns:
        name = f"**{column.name}**" if column.primary_key else column.name
        compiled = column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
        type_ = compiled.lower().replace("timestamp with time zone", "timestamptz")
        yield f"| {name} | {type_} | {'yes' if column.nullable else ''} | {_cell(str(column.comment))} |\n"
    yield "\n"


def _views(sources: Mapping[str, str]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/warehouse.db", create=True)
        schema.migrate(database)
        with database.reading() as connection:
            columns = {name: [column["name"] for column in inspect(connection).get_columns(name)] for name in sources}
        database.close()
    for name, source in sources.items():
        lines = takewhile(lambda line: line.startswith("--"), source.splitlines())
        comment = " ".join(line.removeprefix("--").strip() for line in lines)
        listed = ", ".join(f"`{column}`" for column in columns[name])
        yield f"### {name}\n\n{_cell(comment)}\n\nColumns: {listed}.\n\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")

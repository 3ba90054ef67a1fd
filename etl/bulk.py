"""Many rows into a table at once, by the fastest way of each driver.

Hides COPY, rows in one JSON parameter, and bound values: to bind each value of each row through SQLAlchemy takes
longer than all else that an export does. Rows are dicts or structs whose fields are columns, all of the same; JSON
columns are not for it. Every verb takes a connection inside of the caller's transaction and never commits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Dialect, Table, TypeDecorator

from etl.database import chunks
from etl.documents import LONGEST_TEXT

Row = dict[str, Any]
Rows = Sequence[Row | msgspec.Struct]

_AT_ONCE = 1000  # drivers copy what they are given, and there may be 100,000 rows
_SQLITE_AT_ONCE = 20  # rows in a statement: fewer take longer, more are no faster and fill memory


def insert(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert rows that are new."""
    if connection.dialect.name == "postgresql":
        _copy(connection, table, rows)
    else:
        _bind(connection, table, rows, "")


def insert_or_keep(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert rows; those that are there already stay as they are."""
    _put(connection, table, rows, " ON CONFLICT DO NOTHING")


def upsert(connection: Connection, table: Table, rows: Rows, *, keep: Collection[str] = ()) -> None:
    """Insert rows, or set the columns of those that are there already, but for the columns to `keep`."""
    if rows:
        _put(connection, table, rows, _or_update(table, columns_of(table, rows[:1]), keep))


def upsert_texts(connection: Connection, table: Table, rows: Sequence[Row], name: str) -> None:
    """The same for rows whose column `name` is a long text, given in UTF-8.

    It becomes text in the database: a `str` with an emoji is four times as large.
    """
    if not rows:
        return
    names = columns_of(table, rows)
    if connection.dialect.name == "postgresql":
        marks = ["convert_from(%b, 'UTF8')" if column == name else "%s" for column in names]
        get = _getter(names, rows[0])
        values = [get(row) for row in rows]
    else:
        marks = ["CAST(? AS TEXT)" if column == name else "?" for column in names]
        values = [tuple(stored) for stored in _as_stored(table, names, rows, connection.dialect)]
    into = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(marks)})"
    connection.exec_driver_sql(into + _or_update(table, names), values)


def columns_of(table: Table, rows: Rows) -> list[str]:
    """The columns that each of the rows has, at least one row. Raises AssertionError if they differ."""
    first = rows[0]
    if isinstance(first, msgspec.Struct):
        same = all(type(row) is type(first) for row in rows)
        names = list(first.__struct_fields__)
    else:
        same = all(isinstance(row, dict) and row.keys() == first.keys() for row in rows)
        names = list(first)
    if not same:
        raise AssertionError(f"rows of {table.name} differ in their columns, the first has {', '.join(names)}")
    return names


def as_row(row: Row | msgspec.Struct) -> Row:
    """The columns of a row by name."""
    return msgspec.structs.asdict(row) if isinstance(row, msgspec.Struct) else row


def _or_update(table: Table, names: Sequence[str], keep: Collection[str] = ()) -> str:
    keys = [column.name for column in table.primary_key]
    changed = ", ".join(f"{name} = excluded.{name}" for name in names if name not in {*keys, *keep})
    return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changed}"


def _put(connection: Connection, table: Table, rows: Rows, conflict: str) -> None:
    if connection.dialect.name == "postgresql":
        _put_json(connection, table, rows, conflict)
    else:
        _bind(connection, table, rows, conflict)


def _copy(connection: Connection, table: Table, rows: Rows) -> None:
    from etl.postgresql import cursor_of

    if not rows:
        return
    names = columns_of(table, rows)
    get = _getter(names, rows[0])
    with (
        cursor_of(connection) as cursor,
        cursor.copy(f"COPY {table.name} ({', '.join(names)}) FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.set_types([_type_name(table.c[name], connection.dialect) for name in names])
        for row in rows:
            copy.write_row(get(row))


def _type_name(column: Column[Any], dialect: Dialect) -> str:
    """As PostgreSQL calls it, without a length."""
    return column.type.compile(dialect).partition("(")[0].lower()


def _put_json(connection: Connection, table: Table, rows: Rows, conflict: str) -> None:
    """In one parameter: psycopg adapts value by value, msgspec writes all of them in one go."""
    if not rows:
        return
    names = ", ".join(columns_of(table, rows))
    source = f"json_populate_recordset(CAST(NULL AS {table.name}), CAST(convert_from(%b, 'UTF8') AS json))"
    for array in _arrays(rows):
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {source}{conflict}", (array,)
        )


def _arrays(rows: Rows) -> Iterator[bytes]:
    """JSON arrays no longer than the longest text of a row, or of one row."""
    items: list[bytes] = []
    size = 0
    for row in rows:
        item = msgspec.json.encode(row)
        if items and size + len(item) > LONGEST_TEXT:
            yield b"[%b]" % b",".join(items)
            items, size = [], 0
        items.append(item)
        size += len(item)
    yield b"[%b]" % b",".join(items)


def _bind(connection: Connection, table: Table, rows: Rows, conflict: str) -> None:
    for some in chunks(rows, _AT_ONCE):
        names = columns_of(table, some)
        marks = f"({', '.join('?' for _ in names)})"
        into = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES"
        stored = list(_as_stored(table, names, some, connection.dialect))
        whole = len(stored) // _SQLITE_AT_ONCE * _SQLITE_AT_ONCE
        for size, part in ((_SQLITE_AT_ONCE, stored[:whole]), (1, stored[whole:])):
            if part:
                values = [tuple(chain.from_iterable(group)) for group in chunks(part, size)]
                statement = f"{into} {', '.join([marks] * size)}{conflict}"
                connection.exec_driver_sql(statement, values)


def _as_stored(table: Table, names: Sequence[str], rows: Rows, dialect: Dialect) -> Iterator[list[Any]]:
    """The values of each row as sqlite3 takes them: it knows all but times."""
    types = [table.c[name].type for name in names]
    to_store: list[tuple[int, Any]] = [
        (at, type_.dialect_impl(dialect).bind_processor(dialect))
        for at, type_ in enumerate(types)
        if isinstance(type_, TypeDecorator)
    ]
    get = _getter(names, rows[0])
    for row in rows:
        values = list(get(row))
        for at, store in to_store:
            if values[at] is not None:
                values[at] = store(values[at])
        yield values


def _getter(names: Sequence[str], row: Row | msgspec.Struct) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the values of a row like this one."""
    if isinstance(row, msgspec.Struct):
        return msgspec.structs.astuple
    if len(names) == 1:  # for one name, it would be the value itself
        return lambda row: (row[names[0]],)
    return itemgetter(*names)

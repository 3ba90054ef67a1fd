"""What is psycopg's own: how to connect, how long to wait for an answer, ids in binary, and its cursor.

Imported only where the warehouse is PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
import psycopg.conninfo
from psycopg import postgres
from psycopg.abc import PQGen
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError

from etl.errors import ConfigError

T = TypeVar("T")

CONNECT_SECONDS = 10


def make_engine(url: URL, connections: int, patience: float) -> Engine:
    """An engine whose connections wait for an answer for `patience` seconds, until they are told otherwise.

    Raises ConfigError for parameters that libpq does not know.
    """
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=connections,
            hide_parameters=True,
            pool_pre_ping=True,  # a firewall may have cut what has been idle during a long pause
            pool_use_lifo=True,  # a connection that is not needed stays idle, and small
            connect_args={
                "prepare_threshold": None,
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "checkly-etl",
                "client_encoding": "utf8",  # of a SQL_ASCII database psycopg gives bytes otherwise
                # A network that swallows packets is noticed after a minute, not after two hours.
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
                "tcp_user_timeout": 60_000,
            },
        )
        options: Any = dict(url.query)
        psycopg.conninfo.make_conninfo("", **options)  # refuses what libpq does not know
    except (ArgumentError, psycopg.ProgrammingError, ValueError) as error:
        raise ConfigError(f"warehouse.url: {' '.join(str(error).split())}") from None

    def connect(_dialect: object, _record: object, args: Any, parameters: Any) -> _Connection:
        connection = _Connection.connect(*args, **parameters)
        connection.patience = patience
        connection.adapters.register_dumper(None, _IdDumper)
        return connection

    event.listen(engine, "do_connect", connect)
    return engine


class _Connection(psycopg.Connection[Any]):
    """Gives up on a server that does not answer: a hung connection would hang the process."""

    patience = 10.0  # seconds; whoever connects says how long

    def _set_autocommit(self, value: bool) -> None:
        """Only SQLAlchemy asks for this, to ping an idle connection. That one was cut is no error of the program."""
        try:
            super()._set_autocommit(value)
        except psycopg.ProgrammingError as error:
            self.close()
            raise psycopg.OperationalError("the connection was lost while it was asked whether it lives") from error

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(gen, interval, timeout or self.patience)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.patience:g} s") from None


@lru_cache(4096)  # those of sessions, checks and accounts come again and again
def _id_bytes(id_: str) -> bytes:
    return bytes.fromhex(id_.replace("-", ""))


class _IdDumper(Dumper):
    """For a binary COPY. Ids are text here; psycopg would have `uuid.UUID`, which takes six times as long to make."""

    format = Format.BINARY
    oid = postgres.types["uuid"].oid
    dump = staticmethod(_id_bytes)


@contextmanager
def cursor_of(connection: Connection, **options: Any) -> Iterator[psycopg.Cursor[Any]]:
    """A cursor of psycopg itself, for what SQLAlchemy has no words for: COPY, results in binary.

    Its errors are those of SQLAlchemy, as if it had executed the statement.
    """
    driver: Any = connection.connection.dbapi_connection
    try:
        with driver.cursor(**options) as cursor:
            yield cursor
    except psycopg.Error as error:
        dialect = connection.dialect
        is_lost = dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
        if is_lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            None, None, error, psycopg.Error, connection_invalidated=is_lost, dialect=dialect
        ) from error

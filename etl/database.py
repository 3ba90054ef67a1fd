"""The way to the warehouse's database: engine, transactions, clock, error translation.

Hides what differs between PostgreSQL and SQLite below SQL itself, and everything that SQLAlchemy and
the drivers may raise: callers meet `WarehouseUnavailable`, or a bug. It knows no table.

Facts that shape it:
- Nothing here needs session state, so PgBouncer in transaction mode works: no server-side prepared
  statements, `SET LOCAL` only.
- A COMMIT whose answer was lost may have taken place: the server is asked, and only if not is the work done again.
- A server that restarts is waited for, once it has answered; one that does not answer for minutes is given up on: a
  hung connection would hang the process, and a daemon for ever. Locks of others are waited for, but not for ever
  either, and a client that stands still in a transaction loses it.
- Python's sqlite3 opens no transaction for DDL, and a read that turns into a write fails at once with
  "database is locked" whatever busy_timeout says; so we say `BEGIN` ourselves, and `BEGIN IMMEDIATE`
  for every transaction that may write.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    any_,
    create_engine,
    event,
    literal,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.types import UserDefinedType

from etl.errors import ConfigError, SchemaNotCurrent, WarehouseUnavailable

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 30
RETRY_SECONDS = 30  # for which a transaction that failed is begun again: a restart takes less
STOPPED_RETRY_SECONDS = 3  # the same for a process that was told to stop
LONGEST_RETRY_WAIT = 2.0
CLOCK_TOLERANCE = timedelta(minutes=1)  # a time that lies further ahead was written before the clock was set back
STATEMENT_SECONDS = 300  # after which the answer to a statement is not waited for: the connection is dead
MIGRATION_SECONDS = 12 * 3600  # the same where a table may be rebuilt
MOUNT_TABLE = Path("/proc/self/mountinfo")
# 9p, virtiofs and overlay are not among them: they lead to a disk of the same machine.
_NETWORK_FILESYSTEMS = re.compile(
    r"(fuse\.)?(nfs4?|cifs|smb[23]|smbfs|smbnetfs|ncpfs|afs|coda|ceph(-fuse)?|glusterfs|lustre|beegfs|gpfs|orangefs|pvfs2|"
    r"panfs|wekafs|mfs|juicefs|seaweedfs|sshfs|s3fs|goofys|mountpoint-s3|gcsfuse|blobfuse2?|rclone|davfs2?|curlftpfs|"
    r"gvfsd-fuse)"
)
# A client that stands still loses its locks before those who wait for them give up. psycopg reads dates of ISO
# style only, and no times at the ends of time in zones other than UTC.
_LOCAL_SETTINGS = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL lock_timeout = '60s'; SET LOCAL idle_in_transaction_session_timeout = '45s'; "
    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'"
)

# serialization_failure, deadlock_detected, lock_not_available, admin/crash shutdown, cannot_connect_now
_TRANSIENT_SQLSTATES = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03"})


# The number is null where nothing was written; the server's start tells a crash.
_TRANSACTION = "SELECT CAST(pg_current_xact_id_if_assigned() AS text), CAST(pg_postmaster_start_time() AS text)"
_BECAME = """
    SELECT CASE WHEN CAST(:number AS xid8) < pg_snapshot_xmax(pg_current_snapshot())
                THEN pg_xact_status(CAST(:number AS xid8)) ELSE 'never begun' END,
           CAST(pg_postmaster_start_time() AS text)
"""


class Database:
    """One warehouse. `url` is `sqlite:///file` or `postgresql://…`; `schema` is for PostgreSQL only.

    With `create=False` a missing SQLite file is an error (`SchemaNotCurrent`), never a new empty one.
    `clock_offset` is added to the database's clock; only tests set it. Once `stop` is set, a lost server is not
    waited for any more. `patience` is how many seconds an answer of PostgreSQL may take, if less than usual.
    Thread-safe.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        create: bool = False,
        clock_offset: timedelta = timedelta(0),
        connections: int = 16,
        stop: threading.Event | None = None,
        patience: float | None = None,
    ) -> None:
        parsed = make_url(url)
        self.schema = schema
        self._stop = stop or threading.Event()
        self._patience = patience
        self._has_answered = False
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if parsed.query:
                raise ConfigError(
                    "warehouse.url: a SQLite file has no ?parameters; a ? in its name is written as %3F"
                )
            self.path: Path | None = _absolute(Path(parsed.database or ""))
            if network := network_filesystem(self.path):
                raise ConfigError(
                    f"warehouse.url: {self.path} lies on a network filesystem ({network}), where SQLite breaks its "
                    "files: its WAL needs memory that all processes share. Put the file on a local disk, or use "
                    "PostgreSQL"
                )
            engine = _sqlite_engine(self.path, create, connections)
        else:
            self.path = None
            from etl import postgresql  # psycopg takes 10 MB, which SQLite's users need not have

            engine = postgresql.make_engine(parsed, connections, patience or STATEMENT_SECONDS)
        self.engine: Engine = engine.execution_options(clock_offset=clock_offset)
        self._writer = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        event.listen(engine, "begin", self._on_begin)
        event.listen(engine, "checkin", _drop_swollen)

    def _on_begin(self, connection: Connection) -> None:
        connection.info.pop("moment", None)
        options = connection.get_execution_options()
        if self.is_sqlite:
            if options.get("is_migration"):
                connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
                connection.exec_driver_sql("PRAGMA legacy_alter_table=ON")
            self._begin_sqlite(connection, options.get("sqlite_begin", "BEGIN"))
            return
        driver: Any = connection.connection.dbapi_connection
        driver.patience = MIGRATION_SECONDS if options.get("is_migration") else self._patience or STATEMENT_SECONDS
        settings = _LOCAL_SETTINGS
        if self.schema is not None:
            quoted = connection.dialect.identifier_preparer.quote_identifier(self.schema)
            settings += f"; SET LOCAL search_path TO {quoted}"
        connection.exec_driver_sql(settings)

    def _begin_sqlite(self, connection: Connection, begin: str) -> None:
        """Wait for the lock in Python: SQLite's own waiting would hold up signals for as long as it lasts."""
        dbapi: Any = connection.connection.dbapi_connection
        if connection.info.get("file") != _identity(self.path):
            connection.invalidate()
            raise WarehouseUnavailable(f"the file of the warehouse {self.name} was deleted or replaced while in use")
        began = time.monotonic()
        while True:
            try:
                dbapi.execute(begin)
                dbapi.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # a reader needs its snapshot now
                return
            except sqlite3.OperationalError as error:
                if dbapi.in_transaction:
                    dbapi.rollback()
                limit = STOPPED_RETRY_SECONDS if self._stop.is_set() else SQLITE_BUSY_SECONDS
                if not _is_busy(error) or time.monotonic() - began > limit:
                    connection.exec_driver_sql(begin)  # fails once more, and SQLAlchemy says so
                    return
                time.sleep(random.uniform(0.005, 0.05))  # noqa: S311

    @property
    def name(self) -> str:
        """Full name for people: never a password."""
        if self.path is not None:
            return f"sqlite:///{self.path}"
        url = self.engine.url.set(drivername="postgresql")
        hidden = {
            key: "***" for key in url.query if "pass" in key.lower()
        }  # libpq takes ?password= and ?sslpassword=
        shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
        return f"{shown} schema {self.schema}" if self.schema else shown

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads (on SQLite it must not write)."""
        with _translated(self.name), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write. Committed at the end of the block, rolled back on any exception."""
        with _translated(self.name), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A transaction that may rebuild tables.

        SQLite alters a table by making a new one and dropping the old: with foreign keys on, that would delete the
        children of every row (ON DELETE CASCADE), and the rename would trip over views of other people.
        """
        with _translated(self.name), self._writer.connect() as connection:
            try:
                with connection.execution_options(is_migration=True).begin():
                    yield connection
                    if self.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                        raise AssertionError("the migration left rows whose foreign keys point nowhere")
            finally:
                if self.is_sqlite:
                    connection.detach()  # its pragmas end with it

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a writing transaction, again from its start after a deadlock or a lost connection.

        `work` may therefore run more than once and must do nothing but SQL on the given connection.
        """
        return self._run(self.writing, work)

    def read(self, work: Callable[[Connection], T]) -> T:
        """The same in a transaction that only reads."""
        return self._run(self.reading, work)

    def migrate(self, work: Callable[[Connection], T]) -> T:
        """The same in a transaction that may rebuild tables."""
        return self._run(self.migrating, work)

    def _run(self, begin: Callable[[], AbstractContextManager[Connection]], work: Callable[[Connection], T]) -> T:
        first_failure: float | None = None
        wait = 0.05
        while True:
            transaction: tuple[str | None, str] = (None, "")  # set when only its COMMIT is left
            results: list[T] = []
            try:
                with begin() as connection:
                    results.append(work(connection))
                    if not self.is_sqlite:
                        number, start = connection.exec_driver_sql(_TRANSACTION).one()
                        transaction = (number, start)
                self._has_answered = True
                return results[0]
            except WarehouseUnavailable as error:
                if not self._may_pass(error.__cause__):
                    raise
                first_failure = first_failure or time.monotonic()
                limit = STOPPED_RETRY_SECONDS if self._stop.is_set() else RETRY_SECONDS
                if transaction[0] is not None and self._was_committed(*transaction):
                    return results[0]
                if time.monotonic() - first_failure + wait > limit:
                    raise
                # Jitter, so that two transactions that met once do not meet again.
                time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311
                wait = min(2 * wait, LONGEST_RETRY_WAIT)

    def _was_committed(self, number: str | None, server_start: str) -> bool:
        """Whether a transaction whose COMMIT was not answered took place; waited for until it is known.

        A server that crashed in between may have given the number to another one: then nobody knows.
        """
        end = time.monotonic() + RETRY_SECONDS
        while True:
            state, start = self.read(lambda c: tuple(c.execute(text(_BECAME), {"number": number}).one()))
            if state == "committed" and start == server_start:
                return True
            if state not in ("committed", "in progress"):
                return False
            if state == "committed" or time.monotonic() > end:
                raise WarehouseUnavailable(
                    f"warehouse {self.name}: the connection was lost at the end of a transaction, and nobody can "
                    "tell whether that took place; nothing is lost, run again"
                )
            time.sleep(0.2)

    def _may_pass(self, error: BaseException | None) -> bool:
        if self.is_sqlite:
            return False  # it has waited for its lock as long as it may: to begin again would only wait longer
        # A server that has never answered is more likely a wrong URL than one that restarts.
        return is_transient(error) or (self._has_answered and _is_connecting(error))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def network_filesystem(path: Path) -> str | None:
    """The type of the network filesystem that holds a path, which need not exist yet; None for a local one.

    Where nobody tells what is mounted (not Linux), every filesystem passes for local.
    """
    try:
        mounts = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
        real = Path(os.path.realpath(path))
    except (OSError, ValueError):
        return None
    depth, type_ = 0, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5:
            continue
        mounted = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # Of two at the same place the later one covers the other.
        if len(mounted.parts) >= depth and real.is_relative_to(mounted):
            depth, type_ = len(mounted.parts), after.split(" ")[0]
    return type_ if _NETWORK_FILESYSTEMS.fullmatch(type_) else None


def now(connection: Connection) -> datetime:
    """The database's clock (plus the offset that only tests set): the one clock that times are compared by.

    Read once a transaction, when it is first asked for: after a lock was waited for, not before.
    """
    moment = connection.info.get("moment")
    if moment is None:
        moment = connection.info["moment"] = _read_clock(connection)
    return moment


def _read_clock(connection: Connection) -> datetime:
    offset: timedelta = connection.get_execution_options().get("clock_offset", timedelta(0))
    if connection.dialect.name == "sqlite":
        value = connection.exec_driver_sql("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')").scalar_one()
        return datetime.strptime(value, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC) + offset
    moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return moment.astimezone(UTC) + offset


def insert(connection: Connection, table: Table) -> Any:
    """An INSERT of the connection's dialect, which both have with `on_conflict_do_nothing` and `…_do_update`."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def drop_afterwards(connection: Connection) -> None:
    """Close this connection when its transaction is over: libpq keeps a buffer as large as its largest message."""
    connection.info["is_swollen"] = True


def _drop_swollen(_: object, record: ConnectionPoolEntry) -> None:
    if record.info.pop("is_swollen", False):
        record.invalidate()


def chunks(items: Sequence[T], size: int = 500) -> Iterator[Sequence[T]]:
    """Slices that stay under every driver's limit of bound parameters."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def is_one_of(connection: Connection, column: ColumnElement[str], ids: Collection[str]) -> ColumnElement[bool]:
    """Whether a column of ids is one of `ids`, which are of the form that we store; no more than `chunks` gives.

    On PostgreSQL they are one parameter: to bind a hundred takes longer than to run most statements about them.
    """
    if connection.dialect.name == "sqlite":
        return column.in_(ids)
    return column == any_(literal(f"{{{','.join(ids)}}}", _ArrayOfIds()))


class _ArrayOfIds(UserDefinedType[str]):
    """Written as text, and one value for the server: what is only cast to an array it would read for each row."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        return "UUID[]"


def _is_connecting(error: BaseException | None) -> bool:
    """Whether there was no connection to begin with: then the server has told no SQLSTATE."""
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) is None


def is_transient(error: BaseException | None) -> bool:
    """Whether the same transaction may succeed if it is run again from its start."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        return _is_busy(error.orig)
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate in _TRANSIENT_SQLSTATES or (sqlstate or "").startswith("08")


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """The one place where SQLAlchemy's and the drivers' errors become ours."""
    try:
        yield
    except PoolTimeout as error:
        raise WarehouseUnavailable(f"no free connection to the warehouse {name}") from error
    except (OperationalError, InterfaceError) as error:
        raise WarehouseUnavailable(f"warehouse {name}: {_first_lines(error)}") from error
    except DBAPIError as error:
        # sqlite3 says DatabaseError itself of a file that is no database, or a broken one.
        if is_transient(error) or type(error) is DatabaseError or _is_the_servers(error):
            raise WarehouseUnavailable(f"warehouse {name}: {_first_lines(error)}") from error
        primary = getattr(getattr(error.orig, "diag", None), "message_primary", None)
        if primary and error.orig is not None:
            # A bug's traceback is logged, and psycopg's DETAIL is the whole row: our data has no place in a log.
            error.orig.args = error.args = (primary,)
        raise


def _is_the_servers(error: DBAPIError) -> bool:
    """A refusal that has nothing to do with our SQL: a standby is read only, a right is missing, a disk is full."""
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return sqlstate in ("25006", "42501") or sqlstate[:2] in ("08", "28", "53", "57", "58")


def _first_lines(error: DBAPIError) -> str:
    # `str(error)` of SQLAlchemy would add the statement and its parameters: our data has no place in a log.
    # Nor would psycopg's own leave it out: a COPY's CONTEXT is the beginning of a row.
    diagnosed = getattr(error.orig, "diag", None)
    told = filter(None, (getattr(diagnosed, name, None) for name in ("message_primary", "message_hint")))
    said = " ".join((": ".join(told) or str(error.orig)).split())[:500]
    hint = _SQLITE_HINTS.get(getattr(error.orig, "sqlite_errorcode", 0) & 0xFF)
    return f"{said} ({hint})" if hint else said


_SQLITE_HINTS = {
    sqlite3.SQLITE_READONLY: "the file and its folder must be writable, also for reading, and so must -wal and -shm, "
    "which SQLite keeps beside it: their owner and mode must be the file's",
    sqlite3.SQLITE_CANTOPEN: "the file and its folder must be readable and writable by this user",
    sqlite3.SQLITE_FULL: "nothing is lost: make room and run again",
}


def _sqlite_engine(path: Path, create: bool, connections: int) -> Engine:
    def connect() -> sqlite3.Connection:
        if not create and _is_missing(path):
            raise SchemaNotCurrent(f"there is no warehouse at {path}; create it with: checkly-etl migrate")
        if _would_shut_out_its_owner(path):
            raise WarehouseUnavailable(
                f"warehouse {path}: this user may not write the file, and the -wal and -shm that SQLite makes beside "
                "it even to read would shut out the user whose file it is; run as that user, or let this one write"
            )
        if create:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WarehouseUnavailable(f"the warehouse {path} cannot be created: {error.strerror}") from error
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={'rwc' if create else 'rw'}",
            uri=True,
            timeout=SQLITE_BUSY_SECONDS,  # until the last line of what follows
            isolation_level=None,  # we say BEGIN ourselves
            check_same_thread=False,
            cached_statements=16,  # of 128, those that differ in their count of parameters fill megabytes
        )
        try:
            if create:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA foreign_keys=ON")
            # With WAL, NORMAL loses nothing when a process dies; a power cut may undo the newest transactions
            # as a whole, rows and ack together, so they are simply fetched again.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=200")  # `_begin_sqlite` waits for longer
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    options: dict[str, Any] = {
        "poolclass": QueuePool,
        "pool_size": connections,
        "max_overflow": 4,
        "pool_use_lifo": True,
    }
    engine = create_engine("sqlite://", creator=connect, hide_parameters=True, **options)
    event.listen(engine, "connect", lambda _, record: record.info.update(file=_identity(path)))
    return engine


def _would_shut_out_its_owner(path: Path) -> bool:
    """A reader who may not write the file, but its folder, would leave a -wal and -shm that only he may write."""
    is_readable_only = os.access(path, os.F_OK) and not os.access(path, os.W_OK)
    return is_readable_only and os.access(path.resolve().parent, os.W_OK)


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError:
        raise ConfigError(
            f"warehouse.url: {path} is looked for in the current folder, and that is gone; change to another one, or "
            "give the whole path (sqlite:////var/lib/warehouse.db)"
        ) from None


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:  # whoever may not look cannot tell; SQLite will say so
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    except ValueError:  # a NUL
        return True
    return False


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file stands at a path: a deleted one can be written for as long as it is open, to nobody's use."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found else None

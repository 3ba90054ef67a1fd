"""Checks of an installation, one after the other: what works, what does not, what to do.

Hides which checks make sense when an earlier one failed: those that do not are left out, so that one cause is told
once. Writes nothing, neither rows nor files, and waits for nobody longer than 20 s.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import Connection, text

from etl import accounts, inbox, schema, warehouse
from etl.checkly import Client, proxy_of
from etl.config import Account, Settings
from etl.database import Database, is_transient, now
from etl.errors import (
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_WARNING,
    AccessDenied,
    ApiUnavailable,
    ConfigError,
    EtlError,
    InboxUnavailable,
    NotInPlan,
    RateLimited,
    WarehouseUnavailable,
)
from etl.tables import etl_views, metadata

LOOKUP_SECONDS = 10.0
API_SECONDS = 20.0
PAUSES_SECONDS = 3.0
LOCK_SECONDS, QUERY_SECONDS, ANSWER_SECONDS = 5, 15, 20  # of PostgreSQL: for a lock, a query, any word at all
LARGEST_SKEW = timedelta(seconds=30)
LITTLE_ROOM, NO_ROOM = 1_000_000_000, 100_000_000  # bytes
NTP = "set it by NTP: chrony, systemd-timesyncd or what the system has (timedatectl tells whether it does)"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `exit_code` 0 if it is good; `text` says what was found and, if it is not, what to do."""

    what: str
    exit_code: int
    text: str

    @property
    def status(self) -> str:
        """`ok`, `warning` or `failed`."""
        return {EXIT_OK: "ok", EXIT_WARNING: "warning"}.get(self.exit_code, "failed")


def examine(settings: Settings, user_agent: str) -> Iterator[Finding]:
    """Every check, in the order in which things depend on each other."""
    yield from _api(settings, user_agent, _pauses(settings))
    yield from _inbox(settings)
    yield from _warehouse(settings)


def _said(error: EtlError) -> str:
    return "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)


# --- the API ----------------------------------------------------------------------------------------------------


def _pauses(settings: Settings) -> dict[str, datetime]:
    """The accounts that the API wants silence of, where the warehouse says so soon: its own checks come later."""
    found: dict[str, datetime] = {}

    def ask() -> None:
        with suppress(EtlError), closing(_database(settings)) as database, _looking(database) as connection:
            schema.check_current(connection)
            found.update(accounts.paused(connection))

    _wait_for(ask, PAUSES_SECONDS)
    return found


def _wait_for(ask: Callable[[], None], seconds: float) -> None:
    """What has no end of its own is left alone after so long."""
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)


def _api(settings: Settings, user_agent: str, pauses: Mapping[str, datetime]) -> Iterator[Finding]:
    """The way to the API, then each account's key, its right to come in and what its plan allows, then the clock."""
    url = settings.checkly.api_url
    variable = f"{urlsplit(url).scheme.upper()}_PROXY"
    try:
        proxy = proxy_of(url)
    except ConfigError as error:
        yield Finding("proxy", error.exit_code, _said(error))
        return
    host = urlsplit(url).hostname or ""
    through = ""
    if proxy is None:
        yield Finding("proxy", EXIT_OK, f"none: {url} is asked directly")
    else:
        shown = re.sub(r"^(.*://)?.*@", r"\1***@", proxy)
        through = f" through the proxy {shown}"
        host = urlsplit(proxy if "://" in proxy else f"http://{proxy}").hostname or ""
        yield Finding("proxy", EXIT_OK, f"{shown} leads to {url} (from {variable} or ALL_PROXY)")

    addresses, reason = _look_up(host)
    if not addresses:
        where = f"the host of the proxy in {variable} or ALL_PROXY" if proxy else "the host of CHECKLY_API_URL"
        yield Finding(
            "DNS",
            EXIT_UNREACHABLE,
            f"{host}, {where}, cannot be looked up: {reason}; check its spelling and this machine's name servers "
            f"(getent hosts {host})",
        )
        return
    if addresses == [host]:
        yield Finding("DNS", EXIT_OK, f"{host} is an address: nothing to look up")
    else:
        yield Finding("DNS", EXIT_OK, f"{host} is {', '.join(addresses)}")

    try:
        settings.require_accounts()
    except ConfigError as error:
        yield Finding("key", error.exit_code, _said(error))
    skew: timedelta | None = None
    is_first = True
    for account in settings.checkly.accounts:
        if not account.api_key:
            continue
        if until := pauses.get(account.id):
            yield Finding(
                "pause",
                EXIT_WARNING,
                f"{_label(account)}: paused by the API until {until:%Y-%m-%d %H:%M:%S} UTC, after a 429; no pass "
                "calls it before, nor does the doctor: run it again after that",
            )
            continue
        try:
            client = _client(settings, account, user_agent)
        except ConfigError as error:
            yield Finding("TLS", error.exit_code, _said(error))
            return
        with closing(client):
            failure = _ask(client)
        way = list(_way(url, variable, through, failure))
        if is_first or way[-1].exit_code != EXIT_OK:
            yield from way  # once, unless it breaks between two accounts
        if way[-1].exit_code != EXIT_OK:
            return
        is_first = False
        yield from _account(settings, account, failure)
        skew = client.clock_skew()
    if skew is not None:
        yield _clock(
            "clock",
            skew,
            "this machine's clock is {} the API's",
            "it judges certificates and Retry-After, and with SQLite also what is due and what is about to be lost",
        )


class _Unpaced:
    """A doctor asks once: it needs no budget, and must work without a warehouse."""

    def acquire(self) -> None:
        """Always."""

    def pause(self, seconds: float | None) -> None:
        """A 429 is an answer: the doctor does not wait."""
        raise RateLimited(
            "the API answers 429: another program uses up the account's rate limit; try again later",
            seconds=seconds or 0.0,
        )

    def answered(self) -> None:
        """Nothing."""


def _client(settings: Settings, account: Account, user_agent: str) -> Client:
    return Client(
        api_url=settings.checkly.api_url,
        account_id=account.id,
        api_key=account.api_key.reveal(),
        key_name=account.api_key_env,
        user_agent=user_agent,
        timeout=min(settings.checkly.timeout.total_seconds(), API_SECONDS),
        max_body=settings.checkly.max_body,
        pace=_Unpaced(),
        stop=threading.Event(),
        connections=1,
    )


def _ask(client: Client) -> EtlError | None:
    try:
        client.check_access()
    except EtlError as error:
        return error
    return None


def _look_up(host: str) -> tuple[list[str], str]:
    """The addresses of a host, else why there are none. The system may take minutes over it, which we do not wait."""
    addresses: list[str] = []
    reasons: list[str] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            addresses.extend(dict.fromkeys(str(address[0]) for *_, address in found))
        except OSError as error:
            reasons.append(error.strerror or str(error))
        except UnicodeError:
            reasons.append("this is no name of a host")

    _wait_for(ask, LOOKUP_SECONDS)
    return addresses, reasons[0] if reasons else f"no answer within {LOOKUP_SECONDS:g} s"


def _way(url: str, variable: str, through: str, error: EtlError | None) -> Iterator[Finding]:
    """How far the call came: TLS, then whether it is the API that answers. The last one is good if it is."""
    parts = urlsplit(url)
    said = str(error).removeprefix("list of test sessions: ")
    step = error.step if isinstance(error, ApiUnavailable) else "answer"
    if step == "TLS":
        reason = re.sub(r"\[SSL[^]]*\] | ?\(_ssl\.c:\d+\)", "", said)
        yield Finding("TLS", EXIT_UNREACHABLE, f"{url}{through}: {reason}; {_tls_advice(reason, through)}")
        return
    if step == "proxy":
        if "407" in said:
            advice = f"write it as http://USER:PASSWORD@HOST:PORT into {variable}, special characters as %XX"
        else:
            advice = f"check {variable} (or ALL_PROXY), or name {parts.hostname} in NO_PROXY if no proxy is needed"
        yield Finding("API", EXIT_UNREACHABLE, f"{said}{through and f' ({through.strip()})'}; {advice}")
        return
    if step == "connection":
        advice = (
            f"check the proxy, and whether it may go to {parts.hostname}"
            if through
            else f"check CHECKLY_API_URL, and that a firewall lets this machine out to {parts.netloc}; "
            f"if that needs a proxy, set {variable}"
        )
        yield Finding("API", EXIT_UNREACHABLE, f"{said}{through}; {advice}")
        return
    if parts.scheme == "https":
        yield Finding("TLS", EXIT_OK, f"the certificate of {parts.hostname} is accepted")
    if error is None or isinstance(error, (AccessDenied, NotInPlan, RateLimited)):
        yield Finding("API", EXIT_OK, f"{url} answers{through}")
        return
    if said.startswith("answered"):
        said = f"{url} {said}"
    if "CHECKLY_API_URL" not in said:
        said += f"; try again later, and check CHECKLY_API_URL and what stands between here and {url}{through}"
    yield Finding("API", error.exit_code, said)


def _tls_advice(reason: str, through: str) -> str:
    if "expired" in reason or "not yet valid" in reason:
        return "it has to be renewed over there, unless this machine's clock is wrong (compare: date -u)"
    if "mismatch" in reason or "not valid for" in reason:
        return "the certificate is another host's: check CHECKLY_API_URL" + (" and the proxy" if through else "")
    if "certificate" in reason:
        return (
            "nobody whom this machine trusts has issued it: with a private CA, or a company's proxy that opens TLS, "
            "set REQUESTS_CA_BUNDLE to a PEM file with that CA's certificate"
        )
    return "check host and port of CHECKLY_API_URL, and whatever opens TLS on the way"


def _account(settings: Settings, account: Account, error: EtlError | None) -> Iterator[Finding]:
    """What a call that the API did answer says about one account: its key, the account, its plan."""
    label = _label(account)
    if isinstance(error, RateLimited):
        yield Finding("key", error.exit_code, f"{label}: {error}")
        return
    if isinstance(error, AccessDenied) and error.status == 401:
        yield Finding("key", error.exit_code, str(error))
        return
    yield Finding("key", EXIT_OK, f"{label}: the key in {account.api_key_env} is accepted")
    if isinstance(error, AccessDenied):
        yield Finding("account", error.exit_code, str(error))
        return
    yield Finding("account", EXIT_OK, f"{label}: the key may read it")
    if error is None:
        yield Finding("entitlement", EXIT_OK, f"{label}: its plan lists test sessions")
    elif settings.export.discover:
        yield Finding(
            "entitlement",
            EXIT_WARNING,
            f"{label}: its plan does not allow to list test sessions (402): queue ids with checkly-etl enqueue, for "
            "example from CI, and set export.discover to false",
        )
    else:
        yield Finding(
            "entitlement", EXIT_OK, f"{label}: its plan lists no test sessions (402), and export.discover is false"
        )


def _label(account: Account) -> str:
    return f"{account.name} ({account.id})" if account.name else account.id


def _clock(what: str, ahead: timedelta, sentence: str, effect: str) -> Finding:
    """`sentence` is about a clock that is `ahead`, with {} for how much."""
    if abs(ahead) <= LARGEST_SKEW:
        return Finding(what, EXIT_OK, sentence.format("within seconds of"))
    by = f"{_age(abs(ahead))} {'ahead of' if ahead > timedelta(0) else 'behind'}"
    return Finding(what, EXIT_WARNING, f"{sentence.format(by)}: {effect}; {NTP}")


def _age(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    for unit, size in (("days", 86_400), ("hours", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.0f} s"


# --- inboxes ----------------------------------------------------------------------------------------------------


def _inbox(settings: Settings) -> Iterator[Finding]:
    """One check a configured source of ids. A pass does without one that is down, so that is a warning."""
    for source_settings in settings.inbox:
        try:
            with closing(inbox.open_source(source_settings)) as source:
                yield Finding("inbox", EXIT_OK, f"{source.name}: {source.examine()}")
        except InboxUnavailable as error:
            yield Finding("inbox", EXIT_WARNING, f"{error}; passes go on without it")


# --- the warehouse ----------------------------------------------------------------------------------------------


class _NoFurther(Exception):
    """What follows cannot be told because of what has just been found."""


def _database(settings: Settings) -> Database:
    impatient = threading.Event()
    impatient.set()  # as in a process that was told to stop: SQLite's lock is waited for 3 s
    return Database(
        settings.warehouse.url.reveal(),
        schema=settings.warehouse.schema,
        connections=1,
        stop=impatient,
        patience=ANSWER_SECONDS,
    )


def _warehouse(settings: Settings) -> Iterator[Finding]:
    """Whether it can be reached, is fit for us, may be written, is of our schema, and how the export goes."""
    try:
        database = _database(settings)
    except ConfigError as error:
        yield Finding("warehouse", error.exit_code, _said(error))
        return
    checks: tuple[tuple[str, Callable[[Database, Settings], Iterator[Finding]]], ...] = (
        ("warehouse", _reachable),
        ("version", _version),
        *([("disk", _disk)] if database.is_sqlite else [("database clock", _database_clock), ("disk", _size)]),
        ("privileges", _file_privileges if database.is_sqlite else _privileges),
        ("schema", _schema),
        ("queue", _queue),
        ("last success", _last_success),
    )
    with closing(database):
        for what, check in checks:
            try:
                yield from check(database, settings)
            except _NoFurther:
                return
            except EtlError as error:
                if _sqlstate(error) in ("57014", "55P03"):  # query_canceled, lock_not_available
                    yield Finding(
                        what,
                        EXIT_WARNING,
                        f"not known: {database.name} did not answer within {QUERY_SECONDS} s, for it is busy, very "
                        "large or locked, by a migration for example; SELECT * FROM pg_stat_activity shows by whom",
                    )
                else:
                    yield Finding(what, error.exit_code, _said(error))
                if what in ("warehouse", "schema"):
                    return


@contextmanager
def _looking(database: Database) -> Iterator[Connection]:
    """A transaction that only reads, and waits for no lock and no answer for long."""
    with database.reading() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql(
                f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; SET LOCAL statement_timeout = '{QUERY_SECONDS}s'"
            )
        yield connection


def _sqlstate(error: EtlError) -> str | None:
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None)


def _reachable(database: Database, _: Settings) -> Iterator[Finding]:
    host = None if database.is_sqlite else database.engine.url.host
    if host and not host.startswith("/") and "," not in host:
        addresses, reason = _look_up(host)
        if not addresses:
            raise WarehouseUnavailable(
                f"warehouse {database.name}: its host {host} cannot be looked up: {reason}; check it in "
                "CHECKLY_ETL_WAREHOUSE_URL, and this machine's name servers"
            )
    try:
        with _looking(database):
            yield Finding("warehouse", EXIT_OK, f"{database.name} can be reached")
    except WarehouseUnavailable as error:
        said = str(error)
        if database.path is not None:
            advice = _not_writable(database.path)
        else:
            advice = next((advice for word, advice in _CONNECTING if word in said), _CONNECTING_ELSE)
        yield Finding("warehouse", error.exit_code, f"{said}; {advice}" if advice else said)
        raise _NoFurther from None


_CONNECTING = (
    ("password authentication failed", "check user and password in CHECKLY_ETL_WAREHOUSE_URL, special ones as %XX"),
    ("no password supplied", "put the password into CHECKLY_ETL_WAREHOUSE_URL: postgresql://USER:PASSWORD@HOST/NAME"),
    ('role "', "check the user in CHECKLY_ETL_WAREHOUSE_URL, or create it: CREATE ROLE … LOGIN PASSWORD …"),
    ("does not exist", "check the database's name, or create it: CREATE DATABASE … ENCODING 'UTF8'"),
    ("pg_hba.conf", "the server's pg_hba.conf must let this machine and user in"),
    ("permission denied for database", "its owner must allow it: GRANT CONNECT ON DATABASE … TO …"),
    ("too many", "the server has no connection left: raise max_connections, or put PgBouncer in front of it"),
    ("no answer within", "it takes connections but does not answer: look at the server, or at a PgBouncer before it"),
    ("certificate", "check sslmode and sslrootcert in CHECKLY_ETL_WAREHOUSE_URL"),
)
_CONNECTING_ELSE = (
    "check host and port in CHECKLY_ETL_WAREHOUSE_URL, that PostgreSQL runs there and listens for other machines "
    "(listen_addresses), and that no firewall stands between"
)


def _version(database: Database, _: Settings) -> Iterator[Finding]:
    with _looking(database) as connection:
        schema.check_server(connection)
        if database.is_sqlite:
            yield Finding("version", EXIT_OK, f"SQLite {sqlite3.sqlite_version}")
            return
        query = text("SELECT current_setting('server_version'), current_setting('server_encoding')")
        version, encoding = connection.execute(query).one()
    yield Finding("version", EXIT_OK, f"PostgreSQL {version}, {encoding}")


def _database_clock(database: Database, _: Settings) -> Iterator[Finding]:
    with _looking(database) as connection:
        skew = now(connection) - datetime.now(UTC)
    yield _clock(
        "database clock",
        skew,
        "the database's clock is {} this machine's",
        "what is due, what is about to be lost and since when Checkly is asked go by the database's clock; find out "
        "which of the two is wrong (date -u)",
    )


def _disk(database: Database, _: Settings) -> Iterator[Finding]:
    folder = (database.path or Path()).parent
    free = shutil.disk_usage(folder).free
    left = f"{_bytes(free)} free where {folder} lies"
    advice = "make room or move the file (and its -wal) to a larger disk: a full one ends every pass, losing nothing"
    if free < LITTLE_ROOM:
        yield Finding("disk", EXIT_UNREACHABLE if free < NO_ROOM else EXIT_WARNING, f"only {left}; {advice}")
    else:
        yield Finding("disk", EXIT_OK, left)


def _size(database: Database, _: Settings) -> Iterator[Finding]:
    with _looking(database) as connection:
        size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
    yield Finding("disk", EXIT_OK, f"the database takes {_bytes(size)}; how much room its server has is not told")


def _bytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _not_writable(path: Path) -> str:
    lacking = [
        f"the {kind} {some}"
        for kind, some in (
            ("file", path),
            ("folder", path.parent),
            ("file", Path(f"{path}-wal")),
            ("file", Path(f"{path}-shm")),
        )
        if os.access(some, os.F_OK) and not os.access(some, os.W_OK)
    ]
    if not lacking:
        return ""
    return f"this user may not write {' and '.join(lacking)}: chown or chmod it, or run as the user whose it is"


def _file_privileges(database: Database, _: Settings) -> Iterator[Finding]:
    path = database.path or Path()
    if lacking := _not_writable(path):
        yield Finding("privileges", EXIT_UNREACHABLE, f"{lacking}; SQLite needs both, for its -wal and -shm")
        return
    try:
        with database.writing() as connection:
            connection.rollback()
    except WarehouseUnavailable as error:
        if not is_transient(error.__cause__):
            raise
        yield Finding(
            "privileges",
            EXIT_WARNING,
            f"another process keeps {path} locked, for longer than 3 s: a migration or a very large save "
            f"takes that long; anything else should be ended (fuser {path} tells who has it open)",
        )
    else:
        yield Finding("privileges", EXIT_OK, "the file and its folder can be written")


def _privileges(database: Database, settings: Settings) -> Iterator[Finding]:
    """Asked of the catalogue, which everybody may read, and so before the schema, which maybe we may not."""
    views = {*schema.view_texts(), schema.VERSION_TABLE, etl_views.name}  # only migrate, as their owner, writes these
    names = views | {table.name for table in metadata.tables.values()}
    with _looking(database) as connection:
        who, base, in_schema, is_standby, is_read_only = connection.execute(text(_WHO)).one()
        in_schema = settings.warehouse.schema or in_schema
        parameters = {"schema": in_schema, "names": sorted(names)}
        place = connection.execute(text(_SCHEMA_RIGHTS), parameters).one_or_none()
        rights = connection.execute(text(_TABLE_RIGHTS), parameters).all()
    if is_standby:
        yield Finding(
            "privileges",
            EXIT_UNREACHABLE,
            f"{database.name} is a standby, which takes no writes: name the primary in CHECKLY_ETL_WAREHOUSE_URL (of "
            "several hosts, ?target_session_attrs=read-write finds it)",
        )
        return
    if is_read_only:
        yield Finding(
            "privileges",
            EXIT_UNREACHABLE,
            f"{database.name} is read-only: default_transaction_read_only is on for the server, the database or the "
            f"role; for example: ALTER DATABASE {base} RESET default_transaction_read_only",
        )
        return
    if place is None:
        with _looking(database) as connection:
            may = connection.execute(text("SELECT has_database_privilege(current_database(), 'CREATE')")).scalar_one()
        grants = [] if may else [f"GRANT CREATE ON DATABASE {base} TO {who}"]
        found = f"{who} may create the schema {in_schema}"
    elif not place.may_use:
        grants = [f"GRANT USAGE{'' if rights else ', CREATE'} ON SCHEMA {place.name} TO {who}"]
    elif not rights:
        grants = [] if place.may_create else [f"GRANT CREATE ON SCHEMA {place.name} TO {who}"]
        found = f"{who} may create tables in the schema {place.name}"
    else:
        lacking: dict[str, list[str]] = defaultdict(list)
        for name, *may in rights:
            needed = ("SELECT",) if name in views else ("SELECT", "INSERT", "UPDATE", "DELETE")
            missing = ", ".join(right for right, has in zip(needed, may, strict=False) if not has)
            if missing:
                lacking[missing].append(f"{place.name}.{name}")
        grants = [f"GRANT {missing} ON {', '.join(tables)} TO {who}" for missing, tables in lacking.items()]
        found = f"{who} may read and write the {len(rights)} tables and views"
    if not grants:
        yield Finding("privileges", EXIT_OK, found)
        return
    yield Finding(
        "privileges",
        EXIT_UNREACHABLE,
        f"the role {who} lacks rights; the owner, or a superuser, has to run: {'; '.join(grants)}",
    )
    if not (place and place.may_use and all(may_select for _, may_select, *_ in rights)):
        raise _NoFurther


_WHO = """
    SELECT quote_ident(current_user), quote_ident(current_database()),
           COALESCE((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE c.oid = to_regclass('etl_views')), current_schema(), 'public'),
           pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'
"""
_SCHEMA_RIGHTS = """
    SELECT quote_ident(nspname) AS name, has_schema_privilege(oid, 'USAGE') AS may_use,
           has_schema_privilege(oid, 'CREATE') AS may_create
    FROM pg_namespace WHERE nspname = :schema
"""
_TABLE_RIGHTS = """
    SELECT relname, has_table_privilege(c.oid, 'SELECT'), has_table_privilege(c.oid, 'INSERT'),
           has_table_privilege(c.oid, 'UPDATE'), has_table_privilege(c.oid, 'DELETE')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND relname = ANY(:names) AND relkind IN ('r', 'p', 'v')
    ORDER BY relname
"""


def _schema(database: Database, _: Settings) -> Iterator[Finding]:
    with _looking(database) as connection:
        schema.check_current(connection)
    yield Finding("schema", EXIT_OK, f"current ({schema.HEAD})")


def _queue(database: Database, settings: Settings) -> Iterator[Finding]:
    with _looking(database) as connection:
        rows = warehouse.freshness(connection)
        moment = now(connection)
    due, scheduled, leased, dead = (sum(row[name] for row in rows) for name in ("due", "scheduled", "leased", "dead"))
    oldest = min((row["oldest_due_at"] for row in rows if row["oldest_due_at"]), default=None)
    since = f" (the oldest for {_age(moment - oldest)})" if oldest else ""
    counts = f"{due:,} due{since}, {scheduled:,} scheduled, {leased:,} leased, {dead:,} dead"
    advice = [f"why the {dead:,} could not be exported: checkly-etl dead list"] if dead else []
    ours = {None, *settings.checkly.account_ids}
    for row in rows:
        hours = row["hours_until_loss"]
        if row["account_id"] in ours and hours is not None and hours < settings.observe.loss_warning_hours:
            advice.append(
                f"account {row['account_id']}: Checkly deletes test sessions that are not exported yet, "
                f"{warehouse.when_lost(hours)}: run checkly-etl sync, or see what holds them with checkly-etl status"
            )
    advice += [
        f"account {row['account_id']} is not in these settings, and {row['due']:,} test sessions have waited for it "
        f"for {_age(moment - row['oldest_due_at'])}: add it, unless another process exports it"
        for row in warehouse.unattended(rows, settings.checkly.account_ids, moment)
    ]
    yield Finding("queue", EXIT_WARNING if advice else EXIT_OK, "; ".join([counts, *advice]))


def _last_success(database: Database, settings: Settings) -> Iterator[Finding]:
    with _looking(database) as connection:
        times = {row["account_id"]: row["last_success_at"] for row in warehouse.freshness(connection)}
        moment = now(connection)
    for account in settings.checkly.accounts:
        last, label = times.get(account.id), _label(account)
        if last is None:
            yield Finding("last success", EXIT_OK, f"{label}: never so far; run checkly-etl sync, then from cron")
            continue
        told = f"{label}: {last:%Y-%m-%d %H:%M:%S} UTC, {_age(moment - last)} ago"
        # What was made right after it is not known here, so that no row of the queue warns of its loss.
        left = account.retention - (moment - last)
        if settings.export.discover and left < min(settings.observe.loss_warning, account.retention / 2):
            yield Finding(
                "last success",
                EXIT_WARNING,
                f"{told}; Checkly keeps test sessions for {_age(account.retention)}: look at the last runs in "
                "checkly-etl status and whether cron or the daemon still runs checkly-etl sync",
            )
        else:
            yield Finding("last success", EXIT_OK, told)

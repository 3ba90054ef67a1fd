"""Verbs on `etl_accounts` and `etl_rate_grants`: the rate budget, the pause, and discovery's lease and watermark.

Hides the sliding window: calls granted in the last 61 seconds, counted in the warehouse and so shared by every
process on it. Every verb takes a connection inside of the caller's transaction and never commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, true, update

from etl import process
from etl.database import CLOCK_TOLERANCE, insert, now
from etl.tables import etl_accounts, etl_rate_grants

# Checkly counts arrivals in 60 s; a call may arrive up to a second after it was granted.
WINDOW = timedelta(seconds=61)
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_OWN_PAUSE = timedelta(seconds=60)

_a = etl_accounts.c
_g = etl_rate_grants.c


@dataclass(frozen=True, slots=True)
class Grant:
    """`calls` may be made now; if none, ask again in `wait` seconds. `paused`: the API asked for silence."""

    calls: int
    wait: float = 0.0
    paused: bool = False


def register(connection: Connection, account_id: str, *, name: str | None, retention: timedelta) -> None:
    """Make the account's row, or bring its name and retention up to date with the settings."""
    values = {"name": name, "retention": int(retention.total_seconds())}
    known = connection.execute(select(_a.name, _a.retention).where(_a.account_id == account_id)).one_or_none()
    if known is None:
        connection.execute(
            insert(connection, etl_accounts)
            .values(account_id=account_id, pauses=0, **values)
            .on_conflict_do_nothing()
        )
    elif known._mapping != values:
        connection.execute(update(etl_accounts).where(_a.account_id == account_id).values(values))


def known(connection: Connection) -> set[str]:
    """Ids of the accounts that were ever exported from."""
    return set(connection.execute(select(_a.account_id)).scalars())


def discovered(connection: Connection) -> dict[str, datetime | None]:
    """Return by account until when its test sessions are known; None before its first discovery."""
    return dict(connection.execute(select(_a.account_id, _a.discovered_until)).all())


def is_ahead(connection: Connection) -> bool:
    """Whether a call was granted at a time that is still to come: the clock was set back."""
    ahead = select(_g.calls).where(_g.granted_at > now(connection) + CLOCK_TOLERANCE).limit(1)
    return connection.execute(ahead).first() is not None


def forget_future(connection: Connection, lease: timedelta) -> None:
    """The clock was set back: pauses, grants and leases until times that it had reached once are of no account."""
    moment = now(connection)
    for account_id in sorted(known(connection)):
        # Calls that were granted then may have been made a second ago: they count from now on.
        ahead = and_(_g.account_id == account_id, _g.granted_at > moment)
        calls = connection.execute(select(func.coalesce(func.sum(_g.calls), 0)).where(ahead)).scalar_one()
        connection.execute(delete(etl_rate_grants).where(ahead))
        if calls:
            _count(connection, account_id, moment, int(calls))
        is_it = _a.account_id == account_id
        connection.execute(update(etl_accounts).where(is_it, _a.paused_until > moment).values(paused_until=None))
        is_too_long = _a.discovery_leased_until > moment + lease
        connection.execute(update(etl_accounts).where(is_it, is_too_long).values(discovery_leased_until=moment))


# --- rate budget ----------------------------------------------------------------------------------------------


def take(connection: Connection, account_id: str, *, wanted: int, per_minute: int) -> Grant:
    """Take up to `wanted` calls out of the budget of `per_minute` (0: no limit, but pauses count)."""
    paused_until = connection.execute(
        select(_a.paused_until).where(_a.account_id == account_id).with_for_update()
    ).scalar_one()
    moment = now(connection)
    if paused_until is not None and paused_until > moment:
        return Grant(0, (paused_until - moment).total_seconds(), paused=True)
    if per_minute == 0:
        return Grant(wanted)
    connection.execute(delete(etl_rate_grants).where(_g.account_id == account_id, _g.granted_at <= moment - WINDOW))
    used, oldest = connection.execute(
        select(func.coalesce(func.sum(_g.calls), 0), func.min(_g.granted_at)).where(_g.account_id == account_id)
    ).one()
    calls = min(wanted, per_minute - int(used))
    if calls <= 0:
        return Grant(0, max(0.0, (oldest + WINDOW - moment).total_seconds()))
    _count(connection, account_id, moment, calls)
    return Grant(calls)


def _count(connection: Connection, account_id: str, moment: datetime, calls: int) -> None:
    statement = insert(connection, etl_rate_grants).values(account_id=account_id, granted_at=moment, calls=calls)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[_g.account_id, _g.granted_at], set_={"calls": _g.calls + statement.excluded.calls}
        )
    )


def pause(connection: Connection, account_id: str, seconds: float | None) -> float:
    """Pause the account everywhere after a 429, for Retry-After's `seconds`, else for 5 s doubling to 60 s.

    Returns the seconds that are left of the longest pause that was asked for.
    """
    row = connection.execute(
        select(_a.paused_until, _a.pauses).where(_a.account_id == account_id).with_for_update()
    ).one()
    moment = now(connection)
    running = row.paused_until is not None and row.paused_until > moment
    pauses = row.pauses
    if seconds is not None:
        until = moment + timedelta(seconds=seconds)
    elif running:
        # Calls that were under way when the pause began are answered 429 as well: one pause for all of them.
        until = row.paused_until
    else:
        until = moment + min(FIRST_PAUSE * 2**pauses, LONGEST_OWN_PAUSE)
        pauses = min(pauses + 1, 10)
    if running:
        until = max(until, row.paused_until)
    connection.execute(
        update(etl_accounts).where(_a.account_id == account_id).values(paused_until=until, pauses=pauses)
    )
    return float((until - moment).total_seconds())


def answered(connection: Connection, account_id: str) -> None:
    """The API answers again: the next pause starts short."""
    connection.execute(update(etl_accounts).where(_a.account_id == account_id, _a.pauses > 0).values(pauses=0))


def paused(connection: Connection) -> dict[str, datetime]:
    """The accounts that are paused now, and until when."""
    query = select(_a.account_id, _a.paused_until).where(_a.paused_until > now(connection))
    return dict(connection.execute(query).all())


# --- discovery ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiscoveryLease:
    """The right to discover for one account; `discovered_until` is None before the first discovery."""

    account_id: str
    token: str
    started_at: datetime
    discovered_until: datetime | None


def lease_discovery(connection: Connection, account_id: str, lease: timedelta) -> DiscoveryLease | None:
    """Take the account's discovery; None if another process has it."""
    moment, token = now(connection), str(uuid4())
    holder = connection.execute(
        select(_a.discovery_process).where(_a.account_id == account_id).with_for_update()
    ).scalar_one()
    free: ColumnElement[bool] = or_(_a.discovery_token.is_(None), _a.discovery_leased_until <= moment)
    if holder is not None and process.has_died(holder):
        free = true()
    taken = connection.execute(
        update(etl_accounts)
        .where(_a.account_id == account_id, free)
        .values(discovery_token=token, discovery_process=process.NAME, discovery_leased_until=moment + lease)
    )
    if taken.rowcount == 0:
        return None
    until = connection.execute(select(_a.discovered_until).where(_a.account_id == account_id)).scalar_one()
    return DiscoveryLease(account_id, token, started_at=moment, discovered_until=until)


def renew_discovery(connection: Connection, held: DiscoveryLease, lease: timedelta) -> bool:
    """Extend the lease and lock its row; False if it is no longer ours, and then nothing may be enqueued."""
    return _if_held(connection, held, {"discovery_leased_until": now(connection) + lease})


def finish_discovery(connection: Connection, held: DiscoveryLease, *, discovered_until: datetime | None) -> bool:
    """Give the lease back; `discovered_until` moves forward only, and only if the walk came to its end."""
    values: dict[str, Any] = dict.fromkeys(("discovery_token", "discovery_process", "discovery_leased_until"))
    if discovered_until is not None and (held.discovered_until is None or discovered_until > held.discovered_until):
        values["discovered_until"] = discovered_until
    return _if_held(connection, held, values)


def _if_held(connection: Connection, held: DiscoveryLease, values: dict[str, Any]) -> bool:
    ours = and_(_a.account_id == held.account_id, _a.discovery_token == held.token)
    return connection.execute(update(etl_accounts).where(ours).values(values)).rowcount == 1


def succeeded(connection: Connection, account_id: str) -> None:
    """A pass over this account ended without a failure."""
    connection.execute(
        update(etl_accounts).where(_a.account_id == account_id).values(last_success_at=now(connection))
    )

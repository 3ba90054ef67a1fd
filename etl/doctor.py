"""Checks of an installation, one after the other: what works, what does not, what to do.

Hides which checks make sense when an earlier one failed. Writes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from etl import schema, warehouse
from etl.checkly import Client, PlanLacksList
from etl.config import Settings
from etl.database import Database
from etl.errors import EXIT_OK, EXIT_WARNING, ConfigError, EtlError, RateLimited


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `exit_code` 0 if it is good; `text` says what was found and, if it is not, what to do."""

    what: str
    exit_code: int
    text: str


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


def examine(settings: Settings, user_agent: str) -> Iterator[Finding]:
    """Every check, in the order in which things depend on each other."""
    yield from _warehouse(settings)
    yield from _api(settings, user_agent)


def _warehouse(settings: Settings) -> Iterator[Finding]:
    database = Database(settings.warehouse.url.reveal(), schema=settings.warehouse.schema)
    try:
        with database.reading() as connection:
            yield Finding("warehouse", EXIT_OK, f"{database.name} can be reached")
            schema.check_current(connection)
            held = warehouse.count_test_sessions(connection)
        yield Finding("schema", EXIT_OK, f"current ({schema.HEAD}); {held:,} test sessions so far")
    except EtlError as error:
        is_schema = error.kind == "schema"
        yield Finding("schema" if is_schema else "warehouse", error.exit_code, str(error))
    finally:
        database.close()


def _api(settings: Settings, user_agent: str) -> Iterator[Finding]:
    try:
        accounts = settings.require_accounts()
    except ConfigError as error:
        yield Finding("account", error.exit_code, str(error))
        return
    for account in accounts:
        client = Client(
            api_url=settings.checkly.api_url,
            account_id=account.id,
            api_key=account.api_key.reveal(),
            key_name=account.api_key_env,
            user_agent=user_agent,
            timeout=min(settings.checkly.timeout.total_seconds(), 20.0),
            max_body=settings.checkly.max_body,
            pace=_Unpaced(),
            stop=threading.Event(),
            connections=1,
        )
        what = f"account {account.name or account.id}"
        try:
            client.check_access()
            yield Finding(what, EXIT_OK, f"{settings.checkly.api_url} lets it in and lists its test sessions")
        except PlanLacksList:
            yield Finding(
                what,
                EXIT_WARNING,
                "the key is good, but the plan does not allow listing (402): queue ids with checkly-etl enqueue "
                "and set export.discover to false",
            )
        except EtlError as error:
            yield Finding(what, error.exit_code, str(error))
        finally:
            client.close()

"""The story, top to bottom: discover, export, settle, backfill, replay.

This is the only place that owns transactions, and the only one where HTTP, normalization and the warehouse
meet. No HTTP call happens inside of a transaction. Rows and ack commit together: a crash at any point loses
nothing and doubles nothing.

    sync      = inboxes, then for each account: discover, drain, error groups, result details
    backfill  = for each account: list the range, drain, error groups, result details
    replay    = stored payloads -> rows
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection

from etl import accounts, details_due, rollups, session_queue, warehouse
from etl.config import Account
from etl.database import Database, now
from etl.errors import (
    ApiUnavailable,
    EtlError,
    FatalError,
    Interrupted,
    NotInPlan,
    RateLimited,
    UnusableSession,
    WarehouseUnavailable,
    runbook,
)
from etl.inbox import lines_not_taken
from etl.pipeline.details import fetch_result_details
from etl.pipeline.discovery import discover, list_range, listed_entries
from etl.pipeline.drain import drain
from etl.pipeline.groups import refresh_error_groups
from etl.pipeline.intake import Enqueued, enqueue_texts, take_in
from etl.pipeline.replay import replay_payloads
from etl.pipeline.run import AccountRun, Etl, InboxCount, Outcome, Progress, SharedProgress, Silent, client_of
from etl.pipeline.waiting import export_until_final, tell_what_became
from etl.redaction import Redactor

__all__ = [
    "Enqueued",
    "Etl",
    "InboxCount",
    "Outcome",
    "Plan",
    "Progress",
    "Silent",
    "backfill",
    "enqueue_texts",
    "plan_backfill",
    "refresh_rollups",
    "replay",
    "sync",
    "sync_until_final",
]

logger = logging.getLogger(__name__)


def sync(etl: Etl, outcome: Outcome | None = None) -> Outcome:
    """One pass: read the inboxes, discover what is new or changed, then export what is due.

    Raises ConfigError without an account; whatever else went wrong is in the outcome. One that is given is filled
    as the pass goes on.
    """

    def export(run: AccountRun) -> None:
        if etl.settings.export.discover:
            try:
                discover(run)
                run.outcome.undiscovered.discard(run.account.id)
            except NotInPlan as error:
                run.outcome.undiscovered.discard(run.account.id)  # there is no list: ids come from elsewhere
                run.tell(
                    f"{error}: test sessions are not found by themselves; queue their ids with checkly-etl enqueue, "
                    "and set export.discover to false",
                    "plan",
                )
            except (ApiUnavailable, UnusableSession) as error:
                run.fail(f"discovery failed, the queue is drained all the same: {error}", error.section)
        drain(run)

    with _run(etl, "sync", outcome) as run:
        take_in(etl, run.outcome)
        if etl.settings.export.discover:
            run.outcome.undiscovered = {account.id for account in etl.accounts}
        run.each_account(export)
        _refresh_rollups(etl)
        _warn_of_loss(etl, run.outcome)
    return run.outcome


def sync_until_final(etl: Etl, texts: Sequence[str]) -> Outcome:
    """Export the test sessions of these texts until they are final, and nothing else. Raises as `sync` does."""
    with _run(etl, "sync") as run:
        enqueued = etl.database.run(lambda c: enqueue_texts(c, etl.settings, texts))
        for id_ in enqueued.discarded:
            run.outcome.warn(
                f"test session {id_} was discarded; to export it all the same: enqueue --force", "dead-letter"
            )
        hide = Redactor(etl.settings.secrets).hide
        for told in [*lines_not_taken(enqueued.not_taken, hide), *enqueued.advice]:
            run.outcome.warn(told, "inbox-reject")
        export = partial(export_until_final, ids=enqueued.ids)
        run.each_account(export, again=export, only=enqueued.ids)
        _refresh_rollups(etl)
        tell_what_became(etl, enqueued.ids, run.outcome)
    return run.outcome


def backfill(
    etl: Etl, *, since: datetime, until: datetime | None, newest_first: bool = False, force: bool = False
) -> Outcome:
    """Export every session created in a past range, oldest first: retention takes those first.

    `until` is exclusive, None means now. With `force` what we hold is fetched again, too. Raises as `sync` does.
    """

    def export(run: AccountRun) -> None:
        try:
            list_range(run, since, until, newest_first=newest_first, force=force)
        except NotInPlan as error:
            run.fail(f"{error}: without a list there is no backfill; queue ids with checkly-etl enqueue", "plan")
        except (ApiUnavailable, UnusableSession) as error:
            run.fail(f"the range could not be listed to its end, run the same command again: {error}", error.section)
        drain(run)

    with _run(etl, "backfill") as run:
        run.each_account(export)
        _refresh_rollups(etl)
    return run.outcome


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill would cost. `minutes` at the configured budget; None without one."""

    listed: int
    to_fetch: int
    calls: int
    minutes: float | None


def plan_backfill(etl: Etl, *, since: datetime, until: datetime | None, force: bool = False) -> Plan:
    """List the range and count; nothing is written but the account and the budget of these calls.

    Raises what the client raises.
    """
    listed = to_fetch = pages = 0
    minutes: float | None = 0.0
    _register(etl)  # the budget of these calls needs the account's row
    for account in etl.accounts:
        with client_of(etl, account) as (client, _, _):
            calls = 0
            counted: set[str] = set()  # a list that grows meanwhile shows some twice
            for page in client.list_test_sessions(since=since, until=until):
                found = listed_entries(page)
                new = {entry.test_session_id: entry for entry in found if entry.test_session_id not in counted}
                counted.update(new)
                entries = list(new.values())
                wanted = etl.database.run(partial(session_queue.count_wanted, entries=entries, force=force))
                pages += 1
                listed += len(found)
                to_fetch += wanted
                calls += 1 + wanted
        if account.requests_per_minute == 0:
            minutes = None
        elif minutes is not None:
            # The budget may be spent at once: only what is beyond it takes time.
            minutes += max(0, calls - account.requests_per_minute) / account.requests_per_minute
    return Plan(listed, to_fetch, calls=to_fetch + pages, minutes=minutes)


def replay(etl: Etl) -> Outcome:
    """Rebuild the rows of every stored payload, without the API."""
    outcome = Outcome()
    etl_run_id = etl.database.run(lambda c: warehouse.start_run(c, "replay"))
    with _recorded(etl, etl_run_id, outcome):
        replay_payloads(etl, etl_run_id, outcome)
        if not etl.stop.is_set():
            etl.database.run(warehouse.replay_done)
        etl.database.run(rollups.drop)
        _refresh_rollups(etl)
    return outcome


# --- one run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """A row of etl_runs that is open."""

    etl: Etl
    etl_run_id: str
    outcome: Outcome

    def each_account(
        self,
        export: Callable[[AccountRun], None],
        *,
        again: Callable[[AccountRun], None] = drain,
        only: Sequence[str] | None = None,
    ) -> None:
        """Run `export` for each account, then read its error groups and result details; all accounts side by side.

        No account waits for another one's budget, pause, backlog or outage. Accounts that others offered ids to when
        they had ended do their work `again`. An export of `only` some test sessions says nothing about the accounts'
        freshness. Raises what an account met and could not handle, a bug before all else, when all have ended.
        """
        chosen = self.etl.accounts
        self._side_by_side(chosen, export, only)
        while (to := self._take_offered() - self.outcome.refused) and not self.etl.stop.is_set():
            self._side_by_side([account for account in chosen if account.id in to], again, only)

    def _take_offered(self) -> set[str]:
        with self.outcome.lock:
            to, self.outcome.offered_to = self.outcome.offered_to, set()
        return to & {account.id for account in self.etl.accounts}

    def _side_by_side(
        self, chosen: Sequence[Account], export: Callable[[AccountRun], None], only: Sequence[str] | None
    ) -> None:
        if len(chosen) == 1:
            self._one_account(chosen[0], export, only, self.etl.progress)
            return
        progress = SharedProgress(self.etl.progress)
        failed: list[BaseException] = []
        with ThreadPoolExecutor(len(chosen), thread_name_prefix="account") as threads:
            parts = [threads.submit(self._one_account, account, export, only, progress.part()) for account in chosen]
            for part in parts:
                while not wait([part], timeout=0.2).done:  # a signal is heard between two looks
                    pass
                if (error := part.exception()) is not None:
                    failed.append(error)
        for worst in sorted(failed, key=lambda error: isinstance(error, EtlError)):
            raise worst

    def _one_account(
        self,
        account: Account,
        export: Callable[[AccountRun], None],
        only: Sequence[str] | None,
        progress: Progress,
    ) -> None:
        etl, outcome = self.etl, self.outcome
        with client_of(etl, account, progress) as (client, pacer, stop):
            is_default = etl.is_default(account)
            run = AccountRun(etl, account, is_default, self.etl_run_id, client, pacer, stop, outcome, progress)
            try:
                export(run)
                refresh_error_groups(run)
                fetch_result_details(run, only=only)  # last: there may be thousands
            except Interrupted:
                return
            except (FatalError, RateLimited) as error:
                with outcome.lock:
                    outcome.refused.add(account.id)
                run.fail(str(error), error.section)
            finally:
                run.count_calls()
        if only is None and account.id not in outcome.failed and not etl.stop.is_set():
            etl.database.run(partial(accounts.succeeded, account_id=account.id))


@contextmanager
def _run(etl: Etl, command: str, outcome: Outcome | None = None) -> Iterator[_Run]:
    """A run, from its row in etl_runs to that row's end. What it met of bugs is raised at its end."""
    outcome = outcome or Outcome()
    _register(etl)

    def start(connection: Connection) -> tuple[str, bool]:
        session_queue.release_dead(connection)
        is_set_back = any(verbs.is_ahead(connection) for verbs in (warehouse, accounts, session_queue))
        if is_set_back:
            warehouse.forget_future(connection)
            session_queue.forget_future(connection, etl.settings.export.lease)
            accounts.forget_future(connection, etl.settings.export.lease)
            details_due.forget_future(connection)
        return warehouse.start_run(connection, command), is_set_back

    etl_run_id, is_set_back = etl.database.run(start)
    if is_set_back:
        logger.warning(
            "the warehouse's clock was set back: nothing waits for times that it had reached before",
            extra=runbook("clock"),
        )
    with _recorded(etl, etl_run_id, outcome):
        yield _Run(etl, etl_run_id, outcome)
    if outcome.bug is not None:
        raise outcome.bug


def _refresh_rollups(etl: Etl) -> None:
    """So that views answer fast; without, they answer the same."""
    try:
        refresh_rollups(etl.database, etl.stop)
    except WarehouseUnavailable as error:
        logger.warning(
            "the rollups could not be refreshed, so views answer slowly until a pass can do it: %s",
            error,
            extra=runbook("rollups"),
        )


def refresh_rollups(database: Database, stop: threading.Event | None = None) -> None:
    """Fill what the rollups lack, piece by piece, each in a transaction of its own, until it is told to stop."""
    for step in database.read(rollups.steps):
        after: rollups.After = rollups.BEGIN
        while after is not rollups.END and not (stop and stop.is_set()):
            after = database.run(partial(step, after=after))


def _warn_of_loss(etl: Etl, outcome: Outcome) -> None:
    """The retention guard: a warning while there is still time to do something."""
    chosen = {account.id for account in etl.accounts}
    freshness, discovered, moment = etl.database.read(
        lambda c: (warehouse.freshness(c), accounts.discovered(c), now(c))
    )
    # Ids that no account has yet are the default account's to read. Other accounts are somebody else's to watch.
    outcome.freshness = [
        row
        for row in freshness
        if row["account_id"] in chosen
        or (row["account_id"] is None and etl.settings.checkly.accounts[0].id in chosen)
    ]
    _tell_of_unattended(etl, freshness, moment)
    for account in etl.accounts:
        until = discovered.get(account.id)
        patience = account.retention - timedelta(hours=etl.settings.observe.loss_warning_hours)
        if account.id in outcome.undiscovered and (until is None or moment - until > patience):
            since = "never before" if until is None else f"the last time on {until:%Y-%m-%d %H:%M} UTC"
            outcome.warn(
                f"account {account.id}: its list could not be read to its end in this pass ({since}), so Checkly may "
                "be about to delete test sessions that are not known here; see: checkly-etl status",
                "loss-near",
            )
    for row in outcome.freshness:
        hours = row["hours_until_loss"]
        if hours is None:
            continue
        if hours >= etl.settings.observe.loss_warning_hours:
            logger.debug(
                "account %s: Checkly deletes the oldest test session that is not exported yet in %.1f hours",
                row["account_id"],
                hours,
            )
        else:
            outcome.warn(
                f"account {row['account_id']}: Checkly deletes test sessions that are not exported yet, "
                f"{warehouse.when_lost(hours)}; see: checkly-etl status",
                "loss-near",
            )


def _tell_of_unattended(etl: Etl, freshness: Iterable[dict[str, Any]], moment: datetime) -> None:
    """Ids that wait for an account that nobody exports any more would wait without a word."""
    for row in warehouse.unattended(freshness, etl.settings.checkly.account_ids, moment):
        logger.warning(
            "account %s is not in these settings, and %s test sessions have been waiting for it since %s UTC: "
            "add it, unless another process exports it",
            row["account_id"],
            f"{row['due']:,}",
            f"{row['oldest_due_at']:%Y-%m-%d %H:%M}",
            extra=runbook("unattended-account"),
        )


def _register(etl: Etl) -> None:
    def work(connection: Connection) -> None:
        for account in sorted(etl.accounts, key=lambda account: account.id):
            accounts.register(connection, account.id, name=account.name, retention=account.retention)

    etl.database.run(work)


@contextmanager
def _recorded(etl: Etl, etl_run_id: str, outcome: Outcome) -> Iterator[None]:
    """Write the run's end into its row, however it ends. A lost warehouse is a failure, not an exception."""
    try:
        yield
    except EtlError as error:
        outcome.fail(str(error), error.section)
        if not isinstance(error, WarehouseUnavailable):
            raise
    except BaseException as error:
        outcome.bug = error
        raise
    finally:
        etl.progress.end()
        outcome.is_out_of_time = etl.stop.is_set() and etl.time_is_up
        outcome.is_interrupted = etl.stop.is_set() and not etl.time_is_up
        if outcome.is_out_of_time and outcome.is_unanswered:
            outcome.fail("no call was answered within --max-time; see: checkly-etl doctor", "api-down")
        try:
            etl.database.run(
                lambda c: warehouse.end_run(
                    c, etl_run_id, outcome.counters, outcome=outcome.word, error=outcome.error
                )
            )
        except EtlError as error:
            # The run's own error is the one to tell; the next run closes this row.
            logger.debug("the end of the run could not be recorded: %s", error)

"""Discovery: what is new or changed at Checkly becomes rows of the queue.

Hides the lease, the lookback, and that the next page is asked for while one is saved. It fetches no test session.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime

from sqlalchemy import Connection

from etl import accounts, normalize, session_queue, warehouse
from etl.checkly import Page
from etl.documents import TEST_SESSION_SUMMARY
from etl.errors import ApiUnavailable, Interrupted, LeaseLost, PayloadError
from etl.normalize import Drift
from etl.pipeline.run import AccountRun, begin_in_thread
from etl.session_queue import Listed

logger = logging.getLogger(__name__)


def discover(run: AccountRun) -> None:
    """Queue what is new or changed since the last discovery, `export.lookback` included.

    One process at a time and account; who does not get the lease skips it. Raises what the client raises.
    """
    lease = run.export.lease
    held = run.database.run(lambda c: accounts.lease_discovery(c, run.account.id, lease))
    if held is None:
        logger.debug("another process discovers for account %s; its queue is drained", run.account.id)
        return
    if held.discovered_until is None:
        since = held.started_at - max(run.account.retention, run.export.lookback)
    else:
        # A clock that was set back must not leave a gap.
        since = min(held.discovered_until, held.started_at) - run.export.lookback
    is_held = True
    try:
        for page in _pages(run, since, None):

            def save_page(connection: Connection, page: Page = page) -> tuple[int, bool]:
                if page.is_last:
                    is_ours = accounts.finish_discovery(connection, held, discovered_until=held.started_at)
                else:
                    is_ours = accounts.renew_discovery(connection, held, lease)
                if not is_ours:
                    raise LeaseLost("discovery took too long and went to another process")
                return _enqueue(run, connection, page, session_queue.DISCOVERY)

            _tell(run, run.database.run(save_page))
            is_held = not page.is_last
    except LeaseLost as error:
        logger.debug("%s", error)
        is_held = False
    finally:
        if is_held:
            run.database.run(lambda c: accounts.finish_discovery(c, held, discovered_until=None))


def list_range(run: AccountRun, since: datetime, until: datetime | None, *, newest_first: bool, force: bool) -> None:
    """Queue what is new or changed in a range, or with `force` all of it; `discovered_until` stays."""
    run.progress.begin("listing", None)
    for page in _pages(run, since, until):

        def save_page(connection: Connection, page: Page = page) -> tuple[int, bool]:
            return _enqueue(run, connection, page, session_queue.BACKFILL, newest_first=newest_first, force=force)

        _tell(run, run.database.run(save_page))
        run.progress.advance(len(page.entries))


def listed_entries(page: Page, drift: Drift | None = None) -> list[Listed]:
    """The page's entries; one without a usable id is noted as drift, and does not stop the others."""
    listed: list[Listed] = []
    for entry in page.entries:
        try:
            id_, created_at, account_id = normalize.entry_key(entry)
        except PayloadError as error:
            if drift is not None:
                drift.note(TEST_SESSION_SUMMARY, error.json_path, error.reason)
            continue
        listed.append(Listed(id_, created_at, entry, account_id))
    return listed


def _pages(run: AccountRun, since: datetime, until: datetime | None) -> Iterator[Page]:
    """The pages of the list; the next one is asked for while the caller works on one."""
    pages = run.client.list_test_sessions(since=since, until=until)

    def ask() -> Callable[[], Page]:
        return begin_in_thread(run.etl, lambda: next(pages))

    answer: Callable[[], Page] | None = ask()
    while answer is not None:
        if run.etl.stop.is_set():
            raise Interrupted("stopped while listing")
        try:
            page = answer()
        except ApiUnavailable:
            run.failures_in_a_row += 1
            raise
        answer = None if page.is_last else ask()
        run.failures_in_a_row = 0
        with run.outcome.lock:
            run.outcome.listed += len(page.entries)
        yield page


def _enqueue(
    run: AccountRun,
    connection: Connection,
    page: Page,
    source: str,
    *,
    newest_first: bool = False,
    force: bool = False,
) -> tuple[int, bool]:
    """How many were queued, and whether there were entries that cannot be."""
    drift = Drift()
    queued = session_queue.enqueue_listed(
        connection,
        listed_entries(page, drift),
        account_id=run.account.id,
        others=run.etl.settings.checkly.account_ids - {run.account.id},
        source=source,
        newest_first=newest_first,
        force=force,
    )
    if drift.found:
        warehouse.save_drift(connection, [drift])
    return queued, bool(drift.found)


def _tell(run: AccountRun, saved: tuple[int, bool]) -> None:
    queued, has_unusable = saved
    with run.outcome.lock:
        run.outcome.enqueued += queued
    if has_unusable:
        run.warn(
            "the list holds entries without a usable id, they cannot be exported; see: checkly-etl status",
            "list-entries",
        )

"""The story, top to bottom: discover, export, settle, backfill, replay.

This is the only place that owns transactions, and the only one where HTTP, normalization and the warehouse
meet. No HTTP call happens inside of a transaction. Rows and ack commit together: a crash at any point loses
nothing and doubles nothing.

    sync      = for each account: discover, drain, error groups
    backfill  = for each account: list the range, drain, error groups
    replay    = stored payloads -> rows
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from etl import accounts, documents, normalize, session_queue, warehouse
from etl.checkly import PAGE_SIZE, Client, Page, PlanLacksList
from etl.config import Account, Settings
from etl.database import Database, now
from etl.documents import Document
from etl.errors import (
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_WARNING,
    ApiDown,
    ApiUnavailable,
    EtlError,
    FatalError,
    Interrupted,
    LeaseLost,
    PayloadError,
    RateLimited,
    TestSessionNotFound,
    UnusableSession,
    WarehouseUnavailable,
)
from etl.normalize import ERROR_GROUP, TEST_SESSION, TEST_SESSION_SUMMARY, Drift, TestSessionRows
from etl.pacing import Pacer
from etl.session_queue import Claim, Failure, Listed
from etl.warehouse import Payload

logger = logging.getLogger(__name__)
T = TypeVar("T")

FAILURES_IN_A_ROW = 10  # of the API with no answer between: an outage
FIRST_RETRY = timedelta(minutes=1)  # doubles with each attempt
LONGEST_RETRY = timedelta(hours=1)
POLL_SHARE = 0.2  # a RUNNING session is read again after this share of the time that it has been waiting
REPLAY_BATCH = 100


class Progress(Protocol):
    """How far a long command is, for a terminal."""

    def begin(self, what: str, total: int | None) -> None:
        """A new phase of `total` steps (None: unknown)."""

    def advance(self, steps: int) -> None:
        """So many steps of the phase are done."""

    def end(self) -> None:
        """No phase any more."""


class Silent:
    """Progress that is not shown."""

    def begin(self, what: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, steps: int) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


@dataclass(slots=True)
class Etl:
    """What every command works with. Setting `stop` ends it soon, with its claims given back."""

    settings: Settings
    database: Database
    user_agent: str = "checkly-etl"
    stop: threading.Event = field(default_factory=threading.Event)
    progress: Progress = field(default_factory=Silent)


@dataclass(slots=True)
class Outcome:
    """How a run ended. `failures` mean exit 3, `warnings` and dead letters exit 1."""

    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(warehouse.COUNTERS, 0))
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    listed: int = 0
    enqueued: int = 0
    retrying: int = 0
    interrupted: bool = False
    bug: BaseException | None = None

    @property
    def word(self) -> str:
        """As in `etl_runs.outcome`."""
        if self.interrupted:
            return "interrupted"
        if self.failures or self.bug is not None:
            return "failed"
        return "partial" if self.counters["test_sessions_dead"] or self.retrying or self.warnings else "ok"

    @property
    def error(self) -> str | None:
        """What went wrong, in one text."""
        problems = [*self.failures, *self.warnings]
        if self.bug is not None:
            problems.append(f"a bug in checkly-etl: {type(self.bug).__name__}")
        return "; ".join(problems) or None

    @property
    def exit_code(self) -> int:
        """The most severe wins: 3, 1, 0."""
        if self.failures:
            return EXIT_UNREACHABLE
        return EXIT_WARNING if self.counters["test_sessions_dead"] or self.warnings or self.bug else EXIT_OK


# --- commands ---------------------------------------------------------------------------------------------------


def sync(etl: Etl) -> Outcome:
    """One pass: discover what is new or changed, then export what is due."""

    def one_account(run: _AccountRun) -> None:
        if etl.settings.export.discover:
            try:
                run.discover()
            except PlanLacksList as error:
                run.warn(
                    f"{error}: test sessions are not found by themselves; queue their ids with: "
                    "checkly-etl enqueue, and set export.discover to false"
                )
            except (ApiUnavailable, UnusableSession) as error:
                # The queue is drained all the same.
                run.fail(f"discovery failed: {error}")
        run.drain()

    return _run(etl, "sync", one_account)


def backfill(
    etl: Etl, *, since: datetime, until: datetime | None, newest_first: bool = False, force: bool = False
) -> Outcome:
    """Export every session created in a past range, oldest first: retention takes those first."""

    def one_account(run: _AccountRun) -> None:
        try:
            run.list_range(since, until, newest_first=newest_first, force=force)
        except (ApiUnavailable, UnusableSession) as error:
            run.fail(f"the range could not be listed to its end, run the same command again: {error}")
        run.drain()

    return _run(etl, "backfill", one_account)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a backfill would cost. `minutes` at the configured budget; None without one."""

    listed: int
    to_fetch: int
    calls: int
    minutes: float | None


def plan_backfill(etl: Etl, *, since: datetime, until: datetime | None, force: bool = False) -> Plan:
    """List the range and count; nothing is queued. Raises what the client raises."""
    listed = to_fetch = pages = 0
    minutes: float | None = 0.0
    for account in etl.settings.require_accounts():
        with _client(etl, account) as (client, _):
            calls = 0
            for page in client.list_test_sessions(since=since, until=until):
                pages += 1
                calls += 1
                entries = _listed(page, None)
                with etl.database.reading() as connection:
                    wanted = len(entries) if force else session_queue.unqueued(connection, entries)
                listed += len(entries)
                to_fetch += wanted
                calls += wanted
            if account.requests_per_minute == 0:
                minutes = None
            elif minutes is not None:
                minutes += max(0, calls - account.requests_per_minute) / account.requests_per_minute
    return Plan(listed, to_fetch, calls=to_fetch + pages, minutes=minutes)


def replay(etl: Etl) -> Outcome:
    """Rebuild the rows of every stored payload, without the API. Raises WarehouseUnavailable."""
    outcome = Outcome()
    etl_run_id = etl.database.run(lambda c: warehouse.start_run(c, "replay"))
    with etl.database.reading() as connection:
        total = warehouse.count_payloads(connection, TEST_SESSION)
    etl.progress.begin("replaying", total)
    try:
        for kind, rebuild in ((TEST_SESSION, _replay_test_sessions), (ERROR_GROUP, _replay_error_groups)):
            after: str | None = None
            while not etl.stop.is_set():
                with etl.database.reading() as connection:
                    ids = warehouse.payload_ids(connection, kind, after=after, limit=REPLAY_BATCH)
                if not ids:
                    break
                after = ids[-1]
                counters, problems = etl.database.run(partial(rebuild, ids=ids, etl_run_id=etl_run_id))
                _add(outcome.counters, counters)
                outcome.warnings += problems
                etl.progress.advance(len(ids) if kind == TEST_SESSION else 0)
        outcome.interrupted = etl.stop.is_set()
    except BaseException as error:
        outcome.failures.append(str(error) or type(error).__name__)
        raise
    finally:
        etl.progress.end()
        _finish(etl, etl_run_id, outcome)
    return outcome


def _replay_test_sessions(
    connection: Connection, ids: Sequence[str], etl_run_id: str
) -> tuple[dict[str, int], list[str]]:
    details = warehouse.load_payloads(connection, TEST_SESSION, ids, lock=True)
    summaries = warehouse.load_payloads(connection, TEST_SESSION_SUMMARY, ids)
    held = warehouse.held_columns(connection, ids)
    batch: list[TestSessionRows] = []
    problems: list[str] = []
    for id_, (detail, account_id) in details.items():
        try:
            batch.append(
                normalize.normalize_test_session(
                    detail,
                    test_session_id=id_,
                    account_id=account_id,
                    summary=summaries[id_][0] if id_ in summaries else None,
                    held=held.get(id_),
                )
            )
        except PayloadError as error:
            problems.append(f"the stored payload of test session {id_} cannot be replayed: {error}")
    saved = _save(connection, batch, etl_run_id, rewrite=True)
    return {"test_sessions_saved": len(saved.changed), "results_saved": saved.results}, problems


def _replay_error_groups(
    connection: Connection, ids: Sequence[str], etl_run_id: str
) -> tuple[dict[str, int], list[str]]:
    problems: list[str] = []
    by_account: dict[str, list[normalize.ErrorGroupRows]] = {}
    for id_, (document, account_id) in warehouse.load_payloads(connection, ERROR_GROUP, ids, lock=True).items():
        try:
            rows = normalize.normalize_error_group(document, error_group_id=id_)
        except PayloadError as error:
            problems.append(f"the stored payload of error group {id_} cannot be replayed: {error}")
            continue
        by_account.setdefault(account_id or "", []).append(rows)
    for account_id, batch in sorted(by_account.items()):
        warehouse.save_error_groups(connection, batch, account_id=account_id or None, is_fetch=False)
    return {}, problems


# --- one run ----------------------------------------------------------------------------------------------------


def _run(etl: Etl, command: str, one_account: Callable[[_AccountRun], None]) -> Outcome:
    """Run `one_account` for each account; a refused account does not stop the others."""
    configured = etl.settings.require_accounts()
    outcome = Outcome()

    def start(connection: Connection) -> str:
        session_queue.release_dead(connection)
        for account in configured:
            accounts.register(connection, account.id, name=account.name, retention=account.retention)
        return warehouse.start_run(connection, command)

    etl_run_id = etl.database.run(start)
    logger.debug("run %s of %s began", etl_run_id, command)
    try:
        for account in configured:
            _run_account(etl, account, account is configured[0], etl_run_id, outcome, one_account)
            if etl.stop.is_set():
                outcome.interrupted = True
                break
    except WarehouseUnavailable as error:
        outcome.failures.append(str(error))
    except BaseException as error:
        outcome.bug = error
        raise
    finally:
        etl.progress.end()
        _finish(etl, etl_run_id, outcome)
    if outcome.bug is not None:
        raise outcome.bug
    return outcome


def _run_account(
    etl: Etl,
    account: Account,
    is_default: bool,
    etl_run_id: str,
    outcome: Outcome,
    one_account: Callable[[_AccountRun], None],
) -> None:
    with _client(etl, account) as (client, pacer):
        run = _AccountRun(etl, account, is_default, etl_run_id, client, pacer, outcome)
        before = len(outcome.failures)
        try:
            one_account(run)
            run.refresh_error_groups()
        except Interrupted:
            return
        except (FatalError, RateLimited) as error:
            run.fail(str(error))
        finally:
            run.count_calls()
        if len(outcome.failures) == before and not etl.stop.is_set():
            etl.database.run(lambda c: accounts.succeeded(c, account.id))


@contextmanager
def _client(etl: Etl, account: Account) -> Iterator[tuple[Client, Pacer]]:
    checkly = etl.settings.checkly
    pacer = Pacer(etl.database, account.id, account.requests_per_minute, etl.stop)
    client = Client(
        api_url=checkly.api_url,
        account_id=account.id,
        api_key=account.api_key.reveal(),
        user_agent=etl.user_agent,
        timeout=checkly.timeout.total_seconds(),
        max_body=checkly.max_body,
        pace=pacer,
        stop=etl.stop,
        connections=etl.settings.export.concurrency + 1,
    )
    try:
        yield client, pacer
    finally:
        client.close()


def _finish(etl: Etl, etl_run_id: str, outcome: Outcome) -> None:
    try:
        etl.database.run(
            lambda c: warehouse.update_run(c, etl_run_id, outcome.counters, outcome=outcome.word, error=outcome.error)
        )
    except EtlError as error:
        # The run's own error is the one to tell; its row is closed by the next run.
        logger.debug("the end of the run could not be recorded: %s", error)


# --- what a worker brings back ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fetched:
    claim: Claim
    rows: TestSessionRows
    detail: Document


@dataclass(frozen=True, slots=True)
class _Failed:
    claim: Claim
    error: Exception


_Brought = _Fetched | _Failed


@dataclass(slots=True)
class _Batch:
    """What one transaction records."""

    fetched: list[_Fetched] = field(default_factory=list)
    gone: list[Claim] = field(default_factory=list)  # 404, and we hold it
    blamed: list[_Failed] = field(default_factory=list)  # counted as an attempt
    unusable: list[_Failed] = field(default_factory=list)  # dead at once
    released: list[Claim] = field(default_factory=list)  # unblamed

    @property
    def claims(self) -> list[Claim]:
        of_work = [item.claim for items in (self.fetched, self.blamed, self.unusable) for item in items]
        return [*of_work, *self.gone, *self.released]

    def __len__(self) -> int:
        return len(self.claims)


@dataclass(frozen=True, slots=True)
class _Recorded:
    saved: warehouse.Saved
    counters: dict[str, int]
    buried: dict[str, Failure]
    retried: dict[str, Failure]
    lost: set[str]


# --- one account in one run -----------------------------------------------------------------------------------


class _AccountRun:
    """One account in one run: the phases, and what they share."""

    def __init__(
        self,
        etl: Etl,
        account: Account,
        is_default: bool,
        etl_run_id: str,
        client: Client,
        pacer: Pacer,
        outcome: Outcome,
    ) -> None:
        self._etl, self._account, self._is_default = etl, account, is_default
        self._etl_run_id, self._client, self._pacer, self._outcome = etl_run_id, client, pacer, outcome
        self._database, self._export = etl.database, etl.settings.export
        self._suspects: list[_Failed] = []  # failed since the last answer: whose fault it is, is not known yet
        self._failures_in_a_row = 0
        self._touched_groups: dict[str, datetime] = {}
        self._held_ids: set[str] = set()
        self._calls_counted = (0, 0, 0)

    def warn(self, message: str) -> None:
        """Exit 1."""
        self._outcome.warnings.append(message)
        logger.warning("%s", message)

    def fail(self, message: str) -> None:
        """Exit 3."""
        self._outcome.failures.append(message)
        logger.error("%s", message)

    # --- discover ---

    def discover(self) -> None:
        """Queue what is new or changed since the last discovery, `export.lookback` included."""
        held = self._database.run(lambda c: accounts.lease_discovery(c, self._account.id, self._export.lease))
        if held is None:
            logger.info("another process discovers for account %s; its queue is drained", self._account.id)
            return
        if held.discovered_until is None:
            since = held.started_at - max(self._account.retention, self._export.lookback)
        else:
            since = min(held.discovered_until, held.started_at) - self._export.lookback
        is_finished = False
        try:
            for page in self._pages(since, None):

                def save_page(connection: Connection, page: Page = page) -> int:
                    if page.is_last:
                        is_ours = accounts.finish_discovery(connection, held, discovered_until=held.started_at)
                    else:
                        is_ours = accounts.renew_discovery(connection, held, self._export.lease)
                    if not is_ours:
                        raise LeaseLost("discovery took too long and went to another process")
                    return self._enqueue_page(connection, page, session_queue.DISCOVERY)

                self._outcome.enqueued += self._database.run(save_page)
                is_finished = page.is_last
        except LeaseLost as error:
            logger.info("%s", error)
            is_finished = True
        finally:
            if not is_finished:
                self._database.run(lambda c: accounts.finish_discovery(c, held, discovered_until=None))

    def list_range(self, since: datetime, until: datetime | None, *, newest_first: bool, force: bool) -> None:
        """Queue what is new or changed in a range; `discovered_until` stays."""
        self._etl.progress.begin("listing", None)
        for page in self._pages(since, until):

            def save_page(connection: Connection, page: Page = page) -> int:
                return self._enqueue_page(
                    connection, page, session_queue.BACKFILL, newest_first=newest_first, force=force
                )

            self._outcome.enqueued += self._database.run(save_page)
            self._etl.progress.advance(len(page.entries))

    def _pages(self, since: datetime, until: datetime | None) -> Iterator[Page]:
        pages = self._client.list_test_sessions(since=since, until=until)
        while True:
            if self._etl.stop.is_set():
                raise Interrupted("stopped while listing")
            try:
                page = next(pages, None)
            except ApiUnavailable:
                self._failures_in_a_row += 1
                raise
            if page is None:
                return
            self._failures_in_a_row = 0
            self._outcome.listed += len(page.entries)
            yield page

    def _enqueue_page(
        self, connection: Connection, page: Page, source: str, *, newest_first: bool = False, force: bool = False
    ) -> int:
        drift = Drift()
        queued = session_queue.enqueue_listed(
            connection,
            _listed(page, drift),
            account_id=self._account.id,
            source=source,
            newest_first=newest_first,
            force=force,
        )
        warehouse.save_drift(connection, [drift])
        if drift.found:
            message = f"page {page.number} of the list holds entries without a usable id; see: checkly-etl status"
            if message not in self._outcome.warnings:
                self.warn(message)
        return queued

    # --- drain ---

    def drain(self) -> None:
        """Export what is due, until nothing is or the run is stopped. Raises FatalError, RateLimited."""
        with self._database.reading() as connection:
            self._etl.progress.begin("exporting", session_queue.count_due(connection, self._account.id))
        waiting: deque[tuple[Claim, Mapping[str, Any] | None, Document | None]] = deque()
        flying: dict[Future[_Brought], Claim] = {}
        renewed_at = time.monotonic()
        progressed = False
        pool = ThreadPoolExecutor(self._export.concurrency, thread_name_prefix="fetch")
        try:
            while not self._etl.stop.is_set():
                if not waiting and len(flying) <= self._export.concurrency:
                    waiting.extend(self._claim())
                if not waiting and not flying:
                    break
                while waiting and len(flying) < 2 * self._export.concurrency:
                    work = waiting.popleft()
                    flying[pool.submit(self._fetch, *work)] = work[0]
                done, _ = wait(flying, timeout=1, return_when=FIRST_COMPLETED)
                if done:
                    self._record_all([future.result() for future in done])
                    for future in done:
                        del flying[future]
                    progressed = True
                if progressed and time.monotonic() - renewed_at > self._export.lease.total_seconds() / 3:
                    mine = [work[0] for work in waiting] + list(flying.values())
                    self._database.run(partial(session_queue.renew, claims=mine, lease=self._export.lease))
                    renewed_at, progressed = time.monotonic(), False
            if self._etl.stop.is_set():
                raise Interrupted("stopped")
            self._judge_suspects()
        except BaseException:
            self._give_back(waiting, flying, pool)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _claim(self) -> list[tuple[Claim, Mapping[str, Any] | None, Document | None]]:
        """Claims with what we hold of each: its columns, and its list entry if the claim brings none."""

        def work(connection: Connection) -> list[tuple[Claim, Mapping[str, Any] | None, Document | None]]:
            claims = session_queue.claim(
                connection,
                account_id=self._account.id,
                limit=self._export.batch_size,
                lease=self._export.lease,
                is_default=self._is_default,
            )
            held = warehouse.held_columns(connection, [claim.test_session_id for claim in claims])
            without = [claim.test_session_id for claim in claims if claim.summary is None]
            stored = warehouse.load_payloads(connection, TEST_SESSION_SUMMARY, without)
            return [
                (
                    claim,
                    held.get(claim.test_session_id),
                    claim.summary or stored.get(claim.test_session_id, (None, None))[0],
                )
                for claim in claims
            ]

        claimed = self._database.run(work)
        self._held_ids.update(claim.test_session_id for claim, held, _ in claimed if held is not None)
        return claimed

    def _fetch(self, claim: Claim, held: Mapping[str, Any] | None, summary: Document | None) -> _Brought:
        """In a worker thread: HTTP and pure mapping, no transaction."""
        try:
            detail = self._client.fetch_test_session(claim.test_session_id)
            rows = normalize.normalize_test_session(
                detail,
                test_session_id=claim.test_session_id,
                account_id=self._account.id,
                summary=summary,
                held=held,
            )
        except Exception as error:  # noqa: BLE001 - carried to the main thread, where bugs are raised
            return _Failed(claim, error)
        return _Fetched(claim, rows, detail)

    def _record_all(self, brought: Iterable[_Brought]) -> None:
        """Sort what the workers brought, record it, then raise what ends the drain."""
        batch, fatal = _Batch(), None
        for item in brought:
            if isinstance(item, _Fetched):
                self._answered(batch)
                batch.fetched.append(item)
                continue
            error = item.error
            match error:
                case ApiUnavailable():
                    self._suspects.append(item)
                    self._failures_in_a_row += 1
                case TestSessionNotFound() if item.claim.test_session_id in self._held_ids:
                    self._answered(batch)
                    batch.gone.append(item.claim)
                case UnusableSession():
                    self._answered(batch)
                    batch.unusable.append(item)
                case EtlError():
                    batch.released.append(item.claim)
                    fatal = fatal or error
                case _:
                    self._note_bug(item)
                    batch.blamed.append(item)
        self._record(batch)
        if self._failures_in_a_row >= FAILURES_IN_A_ROW and fatal is None:
            raise self._outage()
        if fatal is not None:
            raise fatal

    def _answered(self, batch: _Batch) -> None:
        """The API works, so what failed since its last answer was the session's own fault."""
        self._failures_in_a_row = 0
        batch.blamed += self._suspects
        self._suspects = []

    def _judge_suspects(self) -> None:
        """Nothing is left to fetch and the last calls failed: ask once whether it is the API or the sessions."""
        if not self._suspects:
            return
        if not self._client.is_answering():
            raise self._outage()
        batch = _Batch()
        self._answered(batch)
        self._record(batch)

    def _outage(self) -> ApiDown:
        last = str(self._suspects[-1].error) if self._suspects else "no answer"
        return ApiDown(
            f"the API does not work, the last {self._failures_in_a_row} calls failed ({last}); "
            "nothing is lost, run again when it is back"
        )

    def _note_bug(self, item: _Failed) -> None:
        logger.error(
            "test session %s: a bug in checkly-etl; please report the traceback",
            item.claim.test_session_id,
            exc_info=item.error,
        )
        self._outcome.bug = self._outcome.bug or item.error

    def _give_back(
        self,
        waiting: Iterable[tuple[Claim, Any, Any]],
        flying: dict[Future[_Brought], Claim],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Finish what is in flight within `schedule.grace`, then give every other claim back unblamed."""
        grace = self._etl.settings.schedule.grace.total_seconds()
        for future in flying:
            future.cancel()
        done, late = wait(flying, timeout=grace)
        batch = _Batch(released=[claim for claim, _, _ in waiting])
        batch.released += [flying[future] for future in late]
        batch.released += [suspect.claim for suspect in self._suspects]
        self._suspects = []
        for future in done:
            item = None if future.cancelled() else future.result()
            if isinstance(item, _Fetched):
                batch.fetched.append(item)
            else:
                batch.released.append(flying[future])
        try:
            self._record(batch)
        except EtlError as error:
            logger.warning("claims could not be given back and end by themselves: %s", error)

    # --- record ---

    def _record(self, batch: _Batch) -> None:
        """One transaction for all of it; if the database refuses it, halves, until the bad one is alone."""
        if not len(batch):
            return
        try:
            recorded = self._database.run(lambda connection: self._write(connection, batch))
        except SQLAlchemyError as error:
            if len(batch.fetched) > 1:
                half = len(batch.fetched) // 2
                self._record(_Batch(fetched=batch.fetched[:half]))
                self._record(_Batch(fetched=batch.fetched[half:]))
            elif batch.fetched:
                bad = _Failed(batch.fetched[0].claim, error)
                self._note_bug(bad)
                self._record(_Batch(blamed=[bad]))
            else:
                raise
            self._record(
                _Batch(gone=batch.gone, blamed=batch.blamed, unusable=batch.unusable, released=batch.released)
            )
            return
        self._tell(batch, recorded)

    def _write(self, connection: Connection, batch: _Batch) -> _Recorded:
        ours = session_queue.lock(connection, batch.claims)
        moment = now(connection)
        fetched = [item for item in batch.fetched if item.claim.test_session_id in ours]
        saved = _save(connection, [item.rows for item in fetched], self._etl_run_id)
        if self._export.keep_payloads:
            changed = [item for item in fetched if item.claim.test_session_id in saved.changed]
            warehouse.save_payloads(connection, [payload for item in changed for payload in self._payloads(item)])

        done: list[str] = []
        polled: dict[str, datetime] = {}
        settling: dict[str, datetime] = {}
        accepted: dict[str, str] = {}
        for item in fetched:
            id_ = item.claim.test_session_id
            again = self._read_again_at(item, moment)
            if again is None:
                done.append(id_)
                if item.claim.summary is not None and not item.rows.is_final:
                    accepted[id_] = item.claim.summary.sha256
            elif item.rows.is_final:
                settling[id_] = again
            else:
                polled[id_] = again
        for claim in batch.gone:
            if claim.test_session_id in ours:
                done.append(claim.test_session_id)
                if claim.summary is not None:
                    accepted[claim.test_session_id] = claim.summary.sha256
        warehouse.accept_summary(connection, accepted)
        session_queue.ack(connection, done)
        session_queue.defer(connection, polled)
        session_queue.defer(connection, settling, source=session_queue.SETTLE)

        to_retry: dict[Failure, tuple[int, datetime]] = {}
        to_bury = {
            _failure(item): item.claim.attempts + 1 for item in batch.unusable if item.claim.test_session_id in ours
        }
        for failed in batch.blamed:
            if failed.claim.test_session_id not in ours:
                continue
            attempts = failed.claim.attempts + 1
            if attempts >= self._export.max_attempts:
                to_bury[_failure(failed)] = attempts
            else:
                to_retry[_failure(failed)] = (attempts, moment + _backoff(attempts))
        session_queue.retry(connection, to_retry)
        session_queue.bury(connection, to_bury)
        session_queue.release(connection, batch.released)

        counters = dict(self._outcome.counters)
        gone = sum(claim.test_session_id in ours for claim in batch.gone)
        _add(
            counters,
            {
                "test_sessions_saved": len(saved.changed),
                "test_sessions_unchanged": len(saved.unchanged) + gone,
                "test_sessions_dead": len(to_bury),
                "results_saved": saved.results,
            },
        )
        warehouse.update_run(connection, self._etl_run_id, counters)
        return _Recorded(
            saved,
            counters,
            buried={failure.test_session_id: failure for failure in to_bury},
            retried={failure.test_session_id: failure for failure in to_retry},
            lost={claim.test_session_id for claim in batch.claims} - ours,
        )

    def _payloads(self, item: _Fetched) -> Iterator[Payload]:
        id_ = item.claim.test_session_id
        yield Payload(TEST_SESSION, id_, self._account.id, id_, item.detail)
        if item.claim.summary is not None:
            yield Payload(TEST_SESSION_SUMMARY, id_, self._account.id, id_, item.claim.summary)

    def _read_again_at(self, item: _Fetched, moment: datetime) -> datetime | None:
        """When to read a session again: until it is final, and then at the settle delays if no list will tell."""
        session = item.rows.test_session
        if not item.rows.is_final:
            waited = moment - item.claim.waiting_since
            if waited >= self._export.running_max_age:
                return None
            return moment + max(self._export.running_poll, waited * POLL_SHARE)
        if session["created_at"] is not None:
            return None
        ended: datetime = session["stopped_at"] or session["started_at"]
        return min((at for delay in self._export.settle if (at := ended + delay) > moment), default=None)

    def _tell(self, batch: _Batch, recorded: _Recorded) -> None:
        self._outcome.counters = recorded.counters
        self._outcome.retrying += len(recorded.retried)
        for item in batch.fetched:
            id_ = item.claim.test_session_id
            if id_ in recorded.lost:
                logger.info("test session %s went to another worker, our copy is dropped", id_)
                continue
            session = item.rows.test_session
            verb = "exported" if id_ in recorded.saved.changed else "unchanged:"
            logger.info(
                "%s test session %s %s, %d results", verb, id_, session["status"], len(item.rows.results or ())
            )
            groups = {*(item.rows.error_group_ids or ()), *(group for _, group in item.rows.result_error_groups)}
            if id_ in recorded.saved.changed:
                for group in groups:
                    self._touched_groups[group] = max(
                        session["started_at"], self._touched_groups.get(group, session["started_at"])
                    )
        for id_, failure in recorded.buried.items():
            logger.warning("test session %s is a dead letter (%s): %s", id_, failure.kind, failure.reason)
        for id_, failure in recorded.retried.items():
            logger.info("test session %s will be tried again: %s", id_, failure.reason)
        self._etl.progress.advance(len(batch) - len(batch.released))

    # --- error groups ---

    def refresh_error_groups(self) -> None:
        """Read the documents of error groups that are unknown, or older than a session that refers to them.

        With the fewest calls: pages of a hundred where many are wanted, single ones where few are.
        """
        if not self._export.error_groups or self._etl.stop.is_set():
            return
        with self._database.reading() as connection:
            wanted = warehouse.error_groups_to_fetch(connection, self._account.id, self._touched_groups)
            pages = math.ceil(warehouse.count_error_groups(connection, self._account.id) / PAGE_SIZE)
        if not wanted:
            return
        self._etl.progress.begin("error groups", len(wanted))
        remaining = set(wanted)
        try:
            if len(remaining) > pages:
                self._list_error_groups(remaining, pages)
            for error_group_id in sorted(remaining):
                if self._etl.stop.is_set():
                    return
                self._fetch_error_group(error_group_id)
        except ApiUnavailable as error:
            # Sessions are safe, and what is still unknown is asked for again by the next pass.
            self.warn(f"error groups could not be read, the next pass tries again: {error}")

    def _list_error_groups(self, remaining: set[str], expected_pages: int) -> None:
        for number, page in enumerate(self._client.list_error_groups(), 1):
            found: list[tuple[str, Document]] = []
            for document in page:
                try:
                    error_group_id, _ = normalize.entry_key(document)
                except PayloadError:
                    continue
                if error_group_id in remaining:
                    found.append((error_group_id, document))
            self._save_error_groups(found)
            remaining.difference_update(error_group_id for error_group_id, _ in found)
            # The account may have far more groups than we refer to: a page must be worth more than single calls.
            if len(remaining) <= 1 or number >= max(expected_pages, 1) + len(remaining) // 2:
                return

    def _fetch_error_group(self, error_group_id: str) -> None:
        try:
            document = self._client.fetch_error_group(error_group_id)
        except UnusableSession as error:
            if not isinstance(error, TestSessionNotFound):
                logger.info("%s", error)
            self._database.run(lambda c: warehouse.error_groups_gone(c, [error_group_id]))
        else:
            self._save_error_groups([(error_group_id, document)])

    def _save_error_groups(self, found: Sequence[tuple[str, Document]]) -> None:
        batch: list[normalize.ErrorGroupRows] = []
        unusable: list[str] = []
        for error_group_id, document in found:
            try:
                batch.append(normalize.normalize_error_group(document, error_group_id=error_group_id))
            except PayloadError as error:
                self.warn(f"error group {error_group_id} has an unusable document: {error}")
                unusable.append(error_group_id)
        usable = {rows.error_group["error_group_id"] for rows in batch}

        def work(connection: Connection) -> None:
            if self._export.keep_payloads:
                payloads = [
                    Payload(ERROR_GROUP, id_, self._account.id, None, document)
                    for id_, document in found
                    if id_ in usable
                ]
                warehouse.save_payloads(connection, payloads)
            warehouse.save_error_groups(connection, batch, account_id=self._account.id)
            warehouse.error_groups_gone(connection, unusable)
            warehouse.save_drift(connection, [rows.drift for rows in batch])

        self._database.run(work)
        self._etl.progress.advance(len(found))

    def count_calls(self) -> None:
        """Add the calls since the last count to the outcome's counters."""
        counted = (self._client.calls.requests, self._client.calls.retries, self._pacer.throttled_ms)
        names = ("api_requests", "api_retries", "throttled_ms")
        for name, value, before in zip(names, counted, self._calls_counted, strict=True):
            self._outcome.counters[name] += value - before
        self._calls_counted = counted


# --- shared ---------------------------------------------------------------------------------------------------------


def _listed(page: Page, drift: Drift | None) -> list[Listed]:
    """The page's entries; one without a usable id is noted as drift, and does not stop the others."""
    listed: list[Listed] = []
    for entry in page.entries:
        try:
            id_, created_at = normalize.entry_key(entry)
        except PayloadError as error:
            if drift is not None:
                drift.note(TEST_SESSION_SUMMARY, error.json_path, error.reason)
            continue
        listed.append(Listed(id_, created_at, entry))
    return listed


def _save(
    connection: Connection, batch: Sequence[TestSessionRows], etl_run_id: str, *, rewrite: bool = False
) -> warehouse.Saved:
    saved = warehouse.save_test_sessions(connection, batch, etl_run_id=etl_run_id, rewrite=rewrite)
    for rows in batch:
        if rows.results is None and rows.test_session_id in saved.changed:
            # The stored results stay, but executions copy columns of the session that may have changed.
            results = warehouse.held_results(connection, rows.test_session_id)
            executions = normalize.normalize_executions(results, rows.test_session)
            warehouse.replace_executions(connection, rows.test_session_id, executions)
    if not rewrite:
        warehouse.save_drift(connection, [rows.drift for rows in batch if rows.test_session_id in saved.changed])
    return saved


def _failure(item: _Failed) -> Failure:
    error = item.error
    if isinstance(error, EtlError):
        return Failure(item.claim.test_session_id, error.kind, str(documents.storable(str(error))))
    # Not the error's own text: it may hold data.
    return Failure(item.claim.test_session_id, "bug", f"a bug in checkly-etl ({type(error).__name__}); see the log")


def _backoff(attempts: int) -> timedelta:
    delay: timedelta = min(FIRST_RETRY * 2 ** min(attempts - 1, 10), LONGEST_RETRY)
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter


def _add(counters: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        counters[name] += value

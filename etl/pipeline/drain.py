"""Draining: claimed ids are fetched in threads, normalized here, and recorded in batches beside that.

Hides what becomes of each claim: saved, polled, settled, retried, buried or given back. Whose fault a failure is,
`blame` says.

Memory stays bounded whatever Checkly sends: documents become rows in batches of a few megabytes, and those over
`LARGE_BODY` are fetched once more, one at a time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection

from etl import normalize, session_queue, warehouse
from etl.checkly import LARGE_BODY
from etl.documents import TEST_SESSION_SUMMARY, Document
from etl.errors import (
    ApiUnavailable,
    EtlError,
    Interrupted,
    LargeDocument,
    PayloadError,
    TestSessionNotFound,
    UnusableSession,
    runbook,
)
from etl.pipeline.blame import Suspects, note_bug
from etl.pipeline.recording import AT_ONCE, Batch, Failed, Fetched, Recorder, Work
from etl.pipeline.run import AccountRun
from etl.session_queue import Claim

logger = logging.getLogger(__name__)

BATCH = 128  # sessions that are recorded together: a transaction costs as much as the rows of twenty of them
BATCH_BYTES = 3_000_000
BATCH_SECONDS = 0.25  # for which a document that came waits for others


def drain(run: AccountRun, *, only: Sequence[str] | None = None) -> None:
    """Export what is due, until nothing is; `only` these ids, if given.

    Raises FatalError or RateLimited with every claim given back.
    """
    _Drain(run, only).work()


@dataclass(frozen=True, slots=True)
class _Brought:
    """What a worker thread came back with: a document or an error."""

    work: Work
    document: Document | None = None
    error: Exception | None = None

    @property
    def size(self) -> int:
        return len(self.document.body) if self.document else 0


@dataclass(slots=True)
class _Tally:
    """Of what came, and is not recorded yet."""

    items: int = 0
    new: int = 0  # of which we hold nothing: each has many rows to write
    size: int = 0  # bytes
    has_failed: bool = False
    since: float = 0.0

    def add(self, item: _Brought) -> None:
        if not self.items:
            self.since = time.monotonic()
        self.items += 1
        self.new += item.work.held is None
        self.size += item.size
        self.has_failed |= item.error is not None


class _Drain:
    """One drain of one account's queue."""

    def __init__(self, run: AccountRun, only: Sequence[str] | None) -> None:
        self._run = run
        self._only = only
        self._database, self._export = run.database, run.export
        # SQLite has one writer: two threads would only wait for each other, and each fill a cache.
        at_once, claiming = (1, 0) if run.database.is_sqlite else (AT_ONCE, 1)
        self._writers = ThreadPoolExecutor(at_once + claiming, thread_name_prefix="write")
        self._recorder = Recorder(run, self._writers, at_once)
        self._claiming: Future[list[Work]] | None = None
        self._dry_after: int | None = None  # so many batches were written when the last claim began and found nothing
        self._claimed_after = 0
        self._waiting: deque[Work] = deque()
        self._large: deque[Work] = deque()  # to be fetched alone
        self._flying: dict[Future[_Brought], Claim] = {}
        self._came: SimpleQueue[Future[Any]] = SimpleQueue()  # of those, and the claim
        self._brought: deque[_Brought] = deque()  # came, and is not recorded yet
        self._tally = _Tally()
        self._alone: Future[_Brought] | None = None  # what fetches a large one
        self._suspects = Suspects[Failed](run)

    def work(self) -> None:
        """Claim, fetch and record until nothing is due."""
        count_due = partial(
            session_queue.count_due,
            account_id=self._run.account.id,
            is_default=self._run.is_default,
            only=self._only,
        )
        self._run.progress.begin("exporting", self._database.read(count_due))
        lease = self._export.lease.total_seconds()
        claimed_at = renewed_at = time.monotonic()
        progressed = False
        pool = ThreadPoolExecutor(self._export.concurrency, thread_name_prefix="fetch")
        try:
            while not self._run.etl.stop.is_set():
                if time.monotonic() - max(claimed_at, renewed_at) > lease:
                    # Nothing moved for a whole lease (a long pause, say): what has not begun is anybody's now.
                    self._recorder.record(Batch(released=self._not_begun()))
                if self._claiming is None and self._has_room():
                    if not self._waiting:
                        claimed_at = time.monotonic()
                    self._begin_to_claim()
                self._begin_to_fetch(pool)
                if self._flying or self._claiming is not None:
                    self._land(BATCH_SECONDS if self._brought else 1)
                elif self._large:
                    self._run.stop.wait(BATCH_SECONDS)  # another account has a large document in hand
                    progressed = True  # it will end: what waits for it is not given back, and fetched once more
                else:
                    self._recorder.settle()
                    if self._is_dry:
                        break
                if self._brought and self._is_time_to_record():
                    self._record_all()
                    progressed = True
                    self._end_alone()
                if progressed and time.monotonic() - renewed_at > lease / 3:
                    self._renew()
                    renewed_at, progressed = time.monotonic(), False
            if self._run.etl.stop.is_set():
                raise Interrupted("stopped")
            self._judge_suspects()
            self._recorder.settle()
        except BaseException:
            self._give_back()
            raise
        finally:
            self._end_alone(is_over=True)
            for threads in (pool, self._writers):
                threads.shutdown(wait=False, cancel_futures=True)

    def _end_alone(self, *, is_over: bool = False) -> None:
        """Let others have a large document in memory, when ours was recorded or the drain is over."""
        if self._alone is not None and (is_over or self._alone not in self._flying):
            self._alone = None
            self._run.etl.large.release()

    @property
    def _is_dry(self) -> bool:
        """The last claim found nothing due, and nothing was written since: what is written may be due again."""
        return self._dry_after == self._recorder.written

    def _has_room(self) -> bool:
        """Whether to claim more: before the last ones are fetched, so that nobody waits for them."""
        is_low = 2 * len(self._waiting) <= self._export.batch_size
        return is_low and not self._is_dry and len(self._large) < self._export.concurrency

    def _begin_to_claim(self) -> None:
        self._claimed_after = self._recorder.written
        self._claiming = self._writers.submit(self._claim)
        self._claiming.add_done_callback(self._came.put)

    def _take_claimed(self) -> None:
        claiming, self._claiming = self._claiming, None
        claimed = claiming.result() if claiming is not None and not claiming.cancelled() else []
        self._dry_after = None if claimed else self._claimed_after
        if claimed:
            logger.debug("account %s: %d test sessions claimed", self._run.account.id, len(claimed))
        self._waiting.extend(claimed)

    def _is_time_to_record(self) -> bool:
        """Many together; but nobody waits for a failure, nor for what does not come.

        Where two are written at once, each is half as large: memory is the same. What we hold already is mostly
        unchanged, and is nothing to write.
        """
        tally, at_once = self._tally, self._recorder.at_once
        return (
            tally.items >= BATCH
            or tally.new * at_once >= BATCH
            or tally.size * at_once >= BATCH_BYTES
            or tally.has_failed
            or not (self._flying or self._waiting or self._claiming)
            or time.monotonic() - tally.since >= BATCH_SECONDS
        )

    def _begin_to_fetch(self, pool: ThreadPoolExecutor) -> None:
        """Fetch as many as there is room for, and one large document if no account has another one in hand."""
        while self._waiting and len(self._flying) < 2 * self._export.concurrency:
            self._submit(pool, self._waiting.popleft())
        if self._large and self._alone is None and self._run.etl.large.acquire(blocking=False):
            self._alone = self._submit(pool, self._large.popleft(), alone=True)

    def _submit(self, pool: ThreadPoolExecutor, work: Work, *, alone: bool = False) -> Future[_Brought]:
        future = pool.submit(self._fetch, work, alone)
        self._flying[future] = work.claim
        future.add_done_callback(self._came.put)
        return future

    def _land(self, patience: float) -> None:
        """Take what comes within so many seconds. (`futures.wait` would look at all that fly.)"""
        with suppress(Empty):
            future = self._came.get(timeout=patience)
            while True:
                if future is self._claiming:
                    self._take_claimed()
                else:
                    del self._flying[future]
                    self._brought.append(brought := future.result())
                    self._tally.add(brought)
                future = self._came.get_nowait()

    def _not_begun(self) -> list[Claim]:
        """The claims that no worker has in hand; they are not ours to begin any more."""
        claims = [work.claim for work in (*self._waiting, *self._large)]
        self._waiting.clear()
        self._large.clear()
        return claims

    def _renew(self) -> None:
        """Renew every claim in hand; those that are no longer ours are not begun."""
        mine = [work.claim for work in (*self._waiting, *self._large)]
        mine += [*self._flying.values(), *(suspect.claim for suspect in self._suspects.items)]
        mine += [item.work.claim for item in self._brought]
        ours = self._database.run(partial(session_queue.renew, claims=mine, lease=self._export.lease))
        for works in (self._waiting, self._large):
            kept = [work for work in works if work.claim.test_session_id in ours]
            works.clear()
            works.extend(kept)

    def _claim(self) -> list[Work]:
        """Claims with what we hold of each: its columns, and its list entry if the claim brings none."""

        def work(connection: Connection) -> list[Work]:
            claims = session_queue.claim(
                connection,
                account_id=self._run.account.id,
                limit=self._export.batch_size,
                lease=self._export.lease,
                is_default=self._run.is_default,
                only=self._only,
            )
            held = warehouse.held_columns(connection, [claim.test_session_id for claim in claims])
            without = [claim.test_session_id for claim in claims if claim.summary is None]
            stored = {
                id_: summary
                for id_, (summary, _) in warehouse.load_payloads(connection, TEST_SESSION_SUMMARY, without).items()
                # An older one than the row's (export.keep_payloads was off) knows less than the row's own columns.
                if id_ in held and held[id_]["summary_sha256"] == summary.sha256
            }
            return [
                Work(claim, held.get(claim.test_session_id), claim.summary or stored.get(claim.test_session_id))
                for claim in claims
            ]

        return self._database.run(work)

    def _fetch(self, work: Work, alone: bool) -> _Brought:
        """In a worker thread: HTTP only."""
        try:
            document = self._run.client.fetch_test_session(work.claim.test_session_id, alone=alone)
        except Exception as error:  # noqa: BLE001 - carried to the main thread, where bugs are raised
            return _Brought(work, error=error)
        return _Brought(work, document)

    def _record_all(self) -> None:
        """Sort what the workers brought, record it in batches, then raise what ends the drain."""
        fatal: EtlError | None = None
        self._tally = _Tally()
        while self._brought:
            is_large = self._brought[0].size > LARGE_BODY
            if is_large:
                self._recorder.settle()  # its rows are alone in memory
            batch = Batch()
            for item in _next_batch(self._brought):
                fatal = self._sort(item, batch) or fatal
            self._recorder.record(batch)
            if is_large:
                self._recorder.settle()
        if fatal is not None:
            raise fatal
        if self._suspects.are_too_many:
            self._judge_suspects()

    def _sort(self, item: _Brought, batch: Batch) -> EtlError | None:
        """Put into the batch what is to be recorded; returns what ends the drain."""
        claim = item.work.claim
        result = self._normalized(item)
        if isinstance(result, Fetched):
            self._answered(batch)
            batch.fetched.append(result)
            return None
        match result.error:
            case ApiUnavailable() | PayloadError() if item.document is None:  # no answer, or not what was asked for
                self._suspects.add(result, result.error, what="test session", id_=claim.test_session_id)
            case LargeDocument():
                self._answered(batch)
                self._large.append(item.work)
            case TestSessionNotFound() if item.work.held is not None:
                self._answered(batch)
                batch.gone.append(claim)
            case TestSessionNotFound() if (to := self._next_account(claim)) is not None:
                self._answered(batch)
                batch.offered.append((claim, to))
            case TestSessionNotFound() if len(asked := claim.asked_with(self._run.account.id)) > 1:
                self._answered(batch)
                error = TestSessionNotFound(f"{result.error}; asked were the accounts {', '.join(asked)}")
                batch.unusable.append(replace(result, error=error))
            case UnusableSession():
                self._answered(batch)
                batch.unusable.append(result)
            case EtlError():
                batch.released.append(claim)
                return result.error
            case _:
                note_bug(self._run.outcome, f"test session {claim.test_session_id}", result.error)
                batch.blamed.append(result)
        return None

    def _normalized(self, item: _Brought) -> Fetched | Failed:
        work = item.work
        if item.document is None:
            return Failed(work, item.error or AssertionError("neither document nor error"))
        if held := self._held_just_so(work, item.document):
            return Fetched(work, normalize.unchanged(held), item.document, results=None)
        try:
            rows = work.rows(item.document, self._run.account.id)
        except Exception as error:  # noqa: BLE001 - bugs are raised at the end of the drain
            return Failed(work, error, item.document)
        results = len(rows.results or ())
        if item.size > LARGE_BODY:
            rows.results = rows.executions = None  # made anew to be saved, and gone before the payload is
        return Fetched(work, rows, item.document, results)

    def _held_just_so(self, work: Work, document: Document) -> Mapping[str, Any] | None:
        """The columns that we hold, if they were made of just this: no need to normalize it.

        Unless its results are to be asked for (`export.result_details`).
        """
        held = work.held
        if held is None or self._export.result_details != "none":
            return None
        summary = work.summary.sha256 if work.summary else held["summary_sha256"]
        is_same = (held["payload_sha256"], held["summary_sha256"]) == (document.sha256, summary)
        return held if is_same else None

    def _next_account(self, claim: Claim) -> str | None:
        """Return the account to ask next for an id that named none; None when all were asked, or it named one.

        Those that were refused in this run come last: they would hold it up.
        """
        if claim.asked_accounts is None:
            return None
        asked = claim.asked_with(self._run.account.id)
        left = [account.id for account in self._run.etl.settings.checkly.accounts if account.id not in asked]
        return min(left, key=lambda id_: id_ in self._run.outcome.refused, default=None)

    def _answered(self, batch: Batch) -> None:
        _blame(self._suspects.answered(), batch)

    def _judge_suspects(self) -> None:
        """The last calls failed: is it the API or the sessions? Raises ApiDown."""
        batch = Batch()
        _blame(self._suspects.judge(), batch)
        self._recorder.record(batch)

    def _give_back(self) -> None:
        """Finish what is in flight within `schedule.grace`, then give every other claim back unblamed."""
        self._run.stop.set()  # no short retries any more
        grace = self._run.etl.settings.schedule.grace.total_seconds()
        if self._claiming is not None:
            self._claiming.cancel()
        for future in self._flying:
            future.cancel()
        done, late = wait(self._flying, timeout=grace)
        failed: list[Exception] = []
        for finish in (self._take_claimed, self._recorder.settle):
            try:
                finish()
            except Exception as error:  # noqa: BLE001 - told or raised when the claims are back
                failed.append(error)
        released = self._not_begun() + self._recorder.take_unwritten() + [self._flying[future] for future in late]
        suspected = [suspect.claim for suspect in self._suspects.take()]
        brought, self._brought = self._brought, deque()
        for future in done:
            item = None if future.cancelled() else future.result()
            if item is None or item.document is None:
                released.append(self._flying[future])
            else:
                brought.append(item)
        try:
            self._recorder.record(Batch(released=released, suspected=suspected))
            while brought:
                results = [self._normalized(item) for item in _next_batch(brought)]
                self._recorder.record(
                    Batch(
                        fetched=[result for result in results if isinstance(result, Fetched)],
                        released=[result.claim for result in results if isinstance(result, Failed)],
                    )
                )
                self._recorder.settle()  # one after the other: there is no hurry any more, and memory is short
            self._recorder.settle()
        except EtlError as error:
            failed.append(error)
        for failure in failed:
            if not isinstance(failure, EtlError):
                raise failure
            logger.warning(
                "not all could be written or given back; the leases of the rest end by themselves: %s",
                failure,
                extra=runbook("warehouse"),
            )


def _blame(failed: Sequence[Failed], batch: Batch) -> None:
    for item in failed:
        (batch.unusable if isinstance(item.error, UnusableSession) else batch.blamed).append(item)


def _next_batch(brought: deque[_Brought]) -> Iterator[_Brought]:
    """Take off what may be in memory as rows together: at least one."""
    size = 0
    while brought and (size == 0 or size + brought[0].size <= LARGE_BODY):
        size += max(1, brought[0].size)
        yield brought.popleft()

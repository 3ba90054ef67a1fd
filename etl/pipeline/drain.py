"""Draining: claimed ids are fetched in threads, normalized and saved here, in one transaction with their ack.

Hides what becomes of each claim: saved, polled, settled, retried, buried or given back. Whose fault a failure
is, is not known while the API does not answer, or answers with something else than was asked for (some proxy's
page): failures since its last answer are *suspects*, counted as the sessions' own only when it answers again, and
given back unblamed when it turns out to be an outage.

Memory stays bounded whatever Checkly sends: documents become rows in batches of a few megabytes, and those over
`LARGE_BODY` are fetched once more, one at a time.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection

from etl import documents, normalize, session_queue, warehouse
from etl.checkly import LARGE_BODY
from etl.database import now
from etl.documents import Document
from etl.errors import (
    ApiDown,
    ApiUnavailable,
    EtlError,
    Interrupted,
    LargeDocument,
    PayloadError,
    TestSessionNotFound,
    UnusableSession,
    runbook,
)
from etl.normalize import TEST_SESSION, TEST_SESSION_SUMMARY, TestSessionRows
from etl.pipeline.run import AccountRun
from etl.pipeline.saving import Wanted, save_test_sessions
from etl.session_queue import Claim, Failure
from etl.warehouse import Payload

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 10  # of the API with no answer between: an outage
FIRST_RETRY = timedelta(minutes=1)  # doubles with each attempt
LONGEST_RETRY = timedelta(hours=1)
NEVER = -timedelta(days=365)  # a session that ends so far in the future has a wrong clock: it is not waited for
BATCH = 64  # sessions that are recorded together: a transaction costs as much as the rows of ten of them
BATCH_BYTES = 3_000_000
BATCH_SECONDS = 0.25  # for which a document that came waits for others
POLL_SHARE = 0.2  # a RUNNING session is read again after this share of the time that it has been waiting


def drain(run: AccountRun, *, only: Sequence[str] | None = None) -> None:
    """Export what is due, until nothing is; `only` these ids, if given.

    Raises FatalError or RateLimited with every claim given back.
    """
    _Drain(run, only).work()


@dataclass(frozen=True, slots=True)
class _Work:
    """A claim, with the columns and the list entry that we hold."""

    claim: Claim
    held: Mapping[str, Any] | None
    summary: Document | None


@dataclass(frozen=True, slots=True)
class _Brought:
    """What a worker thread came back with: a document or an error."""

    work: _Work
    document: Document | None = None
    error: Exception | None = None

    @property
    def size(self) -> int:
        return len(self.document.body) if self.document else 0


@dataclass(frozen=True, slots=True)
class _Fetched:
    work: _Work
    rows: TestSessionRows  # without results and executions if the document is large
    detail: Document
    results: int | None  # None: we held just this when it was claimed, so it was not normalized

    @property
    def claim(self) -> Claim:
        return self.work.claim


@dataclass(frozen=True, slots=True)
class _Failed:
    claim: Claim
    error: Exception
    detail: Document | None = None  # the document, if it came


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


class _Drain:
    """One drain of one account's queue."""

    def __init__(self, run: AccountRun, only: Sequence[str] | None) -> None:
        self._run = run
        self._only = only
        self._database, self._export, self._outcome = run.database, run.export, run.outcome
        self._waiting: deque[_Work] = deque()
        self._large: deque[_Work] = deque()  # to be fetched alone
        self._flying: dict[Future[_Brought], Claim] = {}
        self._brought: deque[_Brought] = deque()  # came, and is not recorded yet
        self._brought_since = 0.0
        self._suspects: list[_Failed] = []  # failed since the last answer: whose fault it is, is not known yet
        self._held_ids: set[str] = set()

    def work(self) -> None:
        """Claim, fetch and record until nothing is due."""
        count_due = partial(
            session_queue.count_due,
            account_id=self._run.account.id,
            is_default=self._run.is_default,
            only=self._only,
        )
        self._run.etl.progress.begin("exporting", self._database.read(count_due))
        lease = self._export.lease.total_seconds()
        claimed_at = renewed_at = time.monotonic()
        progressed = False
        alone: Future[_Brought] | None = None
        pool = ThreadPoolExecutor(self._export.concurrency, thread_name_prefix="fetch")
        try:
            while not self._run.etl.stop.is_set():
                if time.monotonic() - max(claimed_at, renewed_at) > lease:
                    # Nothing moved for a whole lease (a long pause, say): what has not begun is anybody's now.
                    self._record(_Batch(released=self._not_begun()))
                has_room = len(self._flying) <= self._export.concurrency > len(self._large)
                if not self._waiting and has_room:
                    self._waiting.extend(self._claim())
                    claimed_at = time.monotonic()
                while self._waiting and len(self._flying) < 2 * self._export.concurrency:
                    self._submit(pool, self._waiting.popleft())
                if self._large and alone is None:
                    alone = self._submit(pool, self._large.popleft(), alone=True)
                if not self._flying:
                    break
                patience = BATCH_SECONDS if self._brought else 1
                done, _ = wait(self._flying, timeout=patience, return_when=FIRST_COMPLETED)
                if done:
                    if not self._brought:
                        self._brought_since = time.monotonic()
                    for future in done:
                        del self._flying[future]
                    self._brought.extend(future.result() for future in done)
                    alone = None if alone in done else alone
                    done.clear()  # a future holds its document
                    del future
                if self._brought and self._is_time_to_record():
                    self._record_all()
                    progressed = True
                if progressed and time.monotonic() - renewed_at > lease / 3:
                    self._renew()
                    renewed_at, progressed = time.monotonic(), False
            if self._run.etl.stop.is_set():
                raise Interrupted("stopped")
            self._judge_suspects()
        except BaseException:
            self._give_back()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _is_time_to_record(self) -> bool:
        """Many together; but nobody waits for a failure, nor for what does not come."""
        return (
            len(self._brought) >= BATCH
            or not (self._flying or self._waiting)
            or time.monotonic() - self._brought_since >= BATCH_SECONDS
            or any(item.error is not None for item in self._brought)
            or sum(item.size for item in self._brought) >= BATCH_BYTES
        )

    def _submit(self, pool: ThreadPoolExecutor, work: _Work, *, alone: bool = False) -> Future[_Brought]:
        future = pool.submit(self._fetch, work, alone)
        self._flying[future] = work.claim
        return future

    def _not_begun(self) -> list[Claim]:
        """The claims that no worker has in hand; they are not ours to begin any more."""
        claims = [work.claim for work in (*self._waiting, *self._large)]
        self._waiting.clear()
        self._large.clear()
        return claims

    def _renew(self) -> None:
        """Renew every claim in hand; those that are no longer ours are not begun."""
        mine = [work.claim for work in (*self._waiting, *self._large)]
        mine += [*self._flying.values(), *(suspect.claim for suspect in self._suspects)]
        mine += [item.work.claim for item in self._brought]
        ours = self._database.run(partial(session_queue.renew, claims=mine, lease=self._export.lease))
        for works in (self._waiting, self._large):
            kept = [work for work in works if work.claim.test_session_id in ours]
            works.clear()
            works.extend(kept)

    def _claim(self) -> list[_Work]:
        """Claims with what we hold of each: its columns, and its list entry if the claim brings none."""

        def work(connection: Connection) -> list[_Work]:
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
                _Work(claim, held.get(claim.test_session_id), claim.summary or stored.get(claim.test_session_id))
                for claim in claims
            ]

        claimed = self._database.run(work)
        self._held_ids.update(work.claim.test_session_id for work in claimed if work.held is not None)
        return claimed

    def _fetch(self, work: _Work, alone: bool) -> _Brought:
        """In a worker thread: HTTP only."""
        try:
            document = self._run.client.fetch_test_session(work.claim.test_session_id, alone=alone)
        except Exception as error:  # noqa: BLE001 - carried to the main thread, where bugs are raised
            return _Brought(work, error=error)
        return _Brought(work, document)

    def _record_all(self) -> None:
        """Sort what the workers brought, record it in batches, then raise what ends the drain."""
        fatal: EtlError | None = None
        while self._brought:
            batch = _Batch()
            for item in _next_batch(self._brought):
                fatal = self._sort(item, batch) or fatal
            self._record(batch)
        if fatal is not None:
            raise fatal
        if self._run.failures_in_a_row >= FAILURES_IN_A_ROW:
            if not any(isinstance(suspect.error, UnusableSession) for suspect in self._suspects):
                raise self._outage()
            self._judge_suspects()  # it does answer: is it the API?

    def _sort(self, item: _Brought, batch: _Batch) -> EtlError | None:
        """Put into the batch what is to be recorded; returns what ends the drain."""
        claim = item.work.claim
        result = self._normalized(item)
        if isinstance(result, _Fetched):
            self._answered(batch)
            batch.fetched.append(result)
            return None
        match result.error:
            case ApiUnavailable():
                self._suspect(result)
            case PayloadError() if item.document is None:  # the client's: not what it had asked for
                self._suspect(result)
            case LargeDocument():
                self._answered(batch)
                self._large.append(item.work)
            case TestSessionNotFound() if claim.test_session_id in self._held_ids:
                self._answered(batch)
                batch.gone.append(claim)
            case UnusableSession():
                self._answered(batch)
                batch.unusable.append(result)
            case EtlError():
                batch.released.append(claim)
                return result.error
            case _:
                self._note_bug(result)
                batch.blamed.append(result)
        return None

    def _normalized(self, item: _Brought) -> _Fetched | _Failed:
        work = item.work
        if item.document is None:
            return _Failed(work.claim, item.error or AssertionError("neither document nor error"))
        if held := self._held_just_so(work, item.document):
            return _Fetched(work, normalize.unchanged(held), item.document, results=None)
        try:
            rows = self._rows(work, item.document)
        except Exception as error:  # noqa: BLE001 - bugs are raised at the end of the drain
            return _Failed(work.claim, error, item.document)
        results = len(rows.results or ())
        if item.size > LARGE_BODY:
            rows.results = rows.executions = None  # made anew to be saved, and gone before the payload is
        return _Fetched(work, rows, item.document, results)

    def _held_just_so(self, work: _Work, document: Document) -> Mapping[str, Any] | None:
        """The columns that we hold, if they were made of just this: no need to normalize it.

        Unless its results are to be asked for (`export.result_details`).
        """
        held = work.held
        if held is None or self._export.result_details != "none":
            return None
        summary = work.summary.sha256 if work.summary else held["summary_sha256"]
        is_same = (held["payload_sha256"], held["summary_sha256"]) == (document.sha256, summary)
        return held if is_same else None

    def _rows(self, work: _Work, document: Document) -> TestSessionRows:
        return normalize.normalize_test_session(
            document,
            test_session_id=work.claim.test_session_id,
            account_id=self._run.account.id,
            summary=work.summary,
            held=work.held,
        )

    def _rows_to_save(self, item: _Fetched) -> TestSessionRows:
        is_whole = item.results is not None and len(item.detail.body) <= LARGE_BODY
        return item.rows if is_whole else self._rows(item.work, item.detail)

    def _answered(self, batch: _Batch) -> None:
        """The API works, so what failed since its last answer was the session's own fault."""
        self._run.failures_in_a_row = 0
        for suspect in self._suspects:
            (batch.unusable if isinstance(suspect.error, UnusableSession) else batch.blamed).append(suspect)
        self._suspects = []

    def _suspect(self, failed: _Failed) -> None:
        self._suspects.append(failed)
        self._run.failures_in_a_row += 1

    def _judge_suspects(self) -> None:
        """The last calls failed: ask once whether it is the API or the sessions."""
        if not self._suspects:
            return
        if not self._run.call(self._run.client.is_answering):
            raise self._outage()
        batch = _Batch()
        self._answered(batch)
        self._record(batch)

    def _outage(self) -> ApiDown:
        last = "no answer"
        if self._suspects:
            suspect = self._suspects[-1]
            id_ = suspect.claim.test_session_id
            last = str(suspect.error) if id_ in str(suspect.error) else f"test session {id_}: {suspect.error}"
        return ApiDown(
            f"the API does not work, the last {self._run.failures_in_a_row} calls failed ({last}); "
            "nothing is lost, run again when it is back"
        )

    def _note_bug(self, item: _Failed) -> None:
        logger.error(
            "test session %s: a bug in checkly-etl; please report the traceback",
            item.claim.test_session_id,
            exc_info=item.error,
            extra=runbook("bug"),
        )
        self._outcome.bug = self._outcome.bug or item.error

    def _give_back(self) -> None:
        """Finish what is in flight within `schedule.grace`, then give every other claim back unblamed."""
        self._run.stop.set()  # no short retries any more
        grace = self._run.etl.settings.schedule.grace.total_seconds()
        for future in self._flying:
            future.cancel()
        done, late = wait(self._flying, timeout=grace)
        released = self._not_begun() + [self._flying[future] for future in late]
        released += [suspect.claim for suspect in self._suspects]
        self._suspects = []
        brought, self._brought = self._brought, deque()
        for future in done:
            item = None if future.cancelled() else future.result()
            if item is None or item.document is None:
                released.append(self._flying[future])
            else:
                brought.append(item)
        try:
            self._record(_Batch(released=released))
            while brought:
                results = [self._normalized(item) for item in _next_batch(brought)]
                self._record(
                    _Batch(
                        fetched=[result for result in results if isinstance(result, _Fetched)],
                        released=[result.claim for result in results if isinstance(result, _Failed)],
                    )
                )
        except EtlError as error:
            logger.warning(
                "claims could not be given back, their leases end by themselves: %s",
                error,
                extra=runbook("warehouse"),
            )

    # --- record ---

    def _record(self, batch: _Batch) -> None:
        """One transaction for all of it; if one session cannot be written, halves, until the bad one is alone."""
        if not len(batch):
            return
        try:
            recorded = self._database.run(lambda connection: self._write(connection, batch))
        except EtlError:
            raise
        except Exception as error:
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
        known = [item for item in fetched if item.results is None]
        # Nobody else writes what is ours; but `forget` deletes it, whoever has the claim.
        unchanged = warehouse.still_held(connection, [item.rows for item in known])
        saved = save_test_sessions(
            connection,
            [self._rows_to_save(item) for item in fetched if item.claim.test_session_id not in unchanged],
            self._run.etl_run_id,
            wanted=Wanted(self._export.result_details, self._run.account.id),
        )
        saved.unchanged |= unchanged
        if self._export.keep_payloads:
            kept = [
                payload
                for item in fetched
                if item.claim.test_session_id in saved.changed
                for payload in self._payloads(item.claim, item.detail)
            ]
            for unusable in batch.unusable:
                kept += self._rescued(unusable, ours)
            warehouse.save_payloads(connection, kept)

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
                to_retry[_failure(failed)] = (attempts, moment + backoff(attempts))
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
        warehouse.update_run(connection, self._run.etl_run_id, counters)
        return _Recorded(
            saved,
            counters,
            buried={failure.test_session_id: failure for failure in to_bury},
            retried={failure.test_session_id: failure for failure in to_retry},
            lost={claim.test_session_id for claim in batch.claims} - ours,
        )

    def _payloads(self, claim: Claim, detail: Document) -> Iterator[Payload]:
        id_ = claim.test_session_id
        yield Payload(TEST_SESSION, id_, self._run.account.id, id_, detail)
        if claim.summary is not None:
            yield Payload(TEST_SESSION_SUMMARY, id_, self._run.account.id, id_, claim.summary)

    def _rescued(self, item: _Failed, ours: set[str]) -> Iterable[Payload]:
        """The document of a dead letter: a later release may read it when Checkly has deleted it (`replay`)."""
        id_ = item.claim.test_session_id
        if item.detail is None or id_ not in ours or id_ in self._held_ids:
            return ()
        if normalize.document_id(item.detail) != id_:
            return ()  # another session's document is never stored
        return self._payloads(item.claim, item.detail)

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
        waited = moment - ended  # the end may lie at the end of time: nothing is added to it
        return min(
            (moment + (delay - waited) for delay in self._export.settle if delay > waited > NEVER), default=None
        )

    def _tell(self, batch: _Batch, recorded: _Recorded) -> None:
        self._outcome.counters = recorded.counters
        self._outcome.retrying += len(recorded.retried)
        for item in batch.fetched:
            id_ = item.claim.test_session_id
            if id_ in recorded.lost:
                logger.debug("test session %s went to another worker, our copy is dropped", id_)
                continue
            session = item.rows.test_session
            if id_ in recorded.saved.unchanged:
                logger.debug("unchanged: test session %s %s", id_, session["status"])
                continue
            logger.info(
                "exported test session %s %s, %d results",
                id_,
                session["status"],
                item.results or 0,
                extra={"test_session_id": id_, "status": session["status"], "results": item.results or 0},
            )
        for id_, failure in recorded.buried.items():
            logger.warning(
                "test session %s is a dead letter (%s): %s",
                id_,
                failure.kind,
                failure.reason,
                extra={"test_session_id": id_, "error_kind": failure.kind, **runbook("dead-letter")},
            )
        for id_, failure in recorded.retried.items():
            logger.debug("test session %s will be tried again: %s", id_, failure.reason)
        self._run.etl.progress.advance(len(batch) - len(batch.released))


def _next_batch(brought: deque[_Brought]) -> Iterator[_Brought]:
    """Take off what may be in memory as rows together: at least one."""
    size = 0
    while brought and (size == 0 or size + brought[0].size <= LARGE_BODY):
        size += max(1, brought[0].size)
        yield brought.popleft()


def _failure(item: _Failed) -> Failure:
    error = item.error
    if isinstance(error, EtlError):
        return Failure(item.claim.test_session_id, error.kind, str(documents.storable(str(error))))
    # Not the error's own text: it may hold data.
    return Failure(item.claim.test_session_id, "bug", f"a bug in checkly-etl ({type(error).__name__}); see the log")


def backoff(attempts: int) -> timedelta:
    delay: timedelta = min(FIRST_RETRY * 2 ** min(attempts - 1, 10), LONGEST_RETRY)
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter


def _add(counters: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        counters[name] += value

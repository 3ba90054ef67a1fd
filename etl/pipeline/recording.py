"""Recording: what became of the claims goes into the warehouse, in one transaction with their ack.

Hides that batches are written while the next sessions are fetched and normalized, on PostgreSQL two at once, and
that one which cannot be written is halved until the bad session is alone. Memory holds those, and the next.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from etl import documents, normalize, session_queue, warehouse
from etl.checkly import LARGE_BODY
from etl.database import now
from etl.documents import TEST_SESSION, TEST_SESSION_SUMMARY, Document
from etl.errors import EtlError, runbook
from etl.normalize import TestSessionRows
from etl.pipeline.blame import backoff, note_bug
from etl.pipeline.run import AccountRun
from etl.pipeline.saving import Wanted, save_test_sessions
from etl.session_queue import Claim, Failure
from etl.warehouse import Payload

logger = logging.getLogger(__name__)

AT_ONCE = 2  # transactions: one is formatted here while the server works on another; a third only waits for its locks
NEVER = -timedelta(days=365)  # a session that ends so far in the future has a wrong clock: it is not waited for
POLL_SHARE = 0.2  # a RUNNING session is read again after this share of the time that it has been waiting


@dataclass(frozen=True, slots=True)
class Work:
    """A claim, with the columns and the list entry that we hold."""

    claim: Claim
    held: Mapping[str, Any] | None
    summary: Document | None

    def rows(self, document: Document, account_id: str) -> TestSessionRows:
        """The rows of its document. Raises PayloadError."""
        return normalize.normalize_test_session(
            document,
            test_session_id=self.claim.test_session_id,
            account_id=account_id,
            summary=self.summary,
            held=self.held,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document that became rows."""

    work: Work
    rows: TestSessionRows  # without results and executions if the document is large
    detail: Document
    results: int | None  # None: we held just this when it was claimed, so it was not normalized

    @property
    def claim(self) -> Claim:
        """The right to save it."""
        return self.work.claim


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a claim came to nothing; with the document, if it came."""

    work: Work
    error: Exception
    detail: Document | None = None

    @property
    def claim(self) -> Claim:
        """The right to say so."""
        return self.work.claim


@dataclass(slots=True)
class Batch:
    """What one transaction records."""

    fetched: list[Fetched] = field(default_factory=list)
    gone: list[Claim] = field(default_factory=list)  # 404, and we hold it
    offered: list[tuple[Claim, str]] = field(default_factory=list)  # 404, and the account to ask next
    blamed: list[Failed] = field(default_factory=list)  # counted as an attempt
    unusable: list[Failed] = field(default_factory=list)  # dead at once
    released: list[Claim] = field(default_factory=list)  # unblamed
    suspected: list[Claim] = field(default_factory=list)  # the same, but others come first in the next pass

    @property
    def claims(self) -> list[Claim]:
        """All of them."""
        of_work = [item.claim for items in (self.fetched, self.blamed, self.unusable) for item in items]
        offered = [claim for claim, _ in self.offered]
        return [*of_work, *self.gone, *offered, *self.released, *self.suspected]

    def __len__(self) -> int:
        return len(self.claims)


@dataclass(frozen=True, slots=True)
class _Recorded:
    saved: warehouse.Saved
    counted: dict[str, int]  # for the run's counters
    buried: dict[str, Failure]
    retried: dict[str, Failure]
    lost: set[str]


class Recorder:
    """Writes batches in some of the `threads`, so many `at_once`."""

    def __init__(self, run: AccountRun, threads: ThreadPoolExecutor, at_once: int) -> None:
        self._run = run
        self._threads = threads
        self.at_once = at_once
        self._writing: deque[tuple[Future[None], list[Claim]]] = deque()
        self._unwritten: list[Claim] = []
        self.written = 0  # batches

    def record(self, batch: Batch) -> None:
        """Begin to write it, when fewer are written than may be. Raises what those met: WarehouseUnavailable, a bug.

        The claims of what could not be written, and of what then was not begun, are in `take_unwritten`.
        """
        if not len(batch):
            return
        try:
            while len(self._writing) >= self.at_once:
                self._wait_for_first()
        except BaseException:
            self._unwritten += batch.claims
            raise
        self._writing.append((self._threads.submit(self._record, batch), batch.claims))

    def settle(self) -> None:
        """Wait until everything is written, whatever fails. Raises as `record`, a bug before all else."""
        failed: list[Exception] = []
        while self._writing:
            try:
                self._wait_for_first()
            except Exception as error:  # noqa: BLE001 - raised when nothing is written any more
                failed.append(error)
        for worst in sorted(failed, key=lambda error: isinstance(error, EtlError)):
            raise worst

    def _wait_for_first(self) -> None:
        writing, claims = self._writing.popleft()
        try:
            writing.result()
        except BaseException:
            self._unwritten += claims
            raise
        self.written += 1

    def take_unwritten(self) -> list[Claim]:
        """What is to be given back: some of it may have been written all the same, and is no longer ours then."""
        taken, self._unwritten = self._unwritten, []
        return taken

    def _record(self, batch: Batch) -> None:
        """One transaction for all of it; if one session cannot be written, halves, until the bad one is alone."""
        if not len(batch):
            return
        try:
            recorded = self._run.database.run(lambda connection: self._write(connection, batch))
        except EtlError:
            raise
        except Exception as error:
            if len(batch.fetched) > 1:
                half = len(batch.fetched) // 2
                self._record(Batch(fetched=batch.fetched[:half]))
                self._record(Batch(fetched=batch.fetched[half:]))
            elif batch.fetched:
                bad = Failed(batch.fetched[0].work, error)
                note_bug(self._run.outcome, f"test session {bad.claim.test_session_id}", error)
                self._record(Batch(blamed=[bad]))
            else:
                raise
            self._record(replace(batch, fetched=[]))
            return
        self._tell(batch, recorded)

    def _write(self, connection: Connection, batch: Batch) -> _Recorded:
        ours = session_queue.lock(connection, batch.claims)
        moment = now(connection)
        saved = self._save(connection, batch, ours)
        self._acknowledge(connection, batch, ours, moment)
        self._offer(connection, batch, ours)
        buried, retried = self._blame(connection, batch, ours, moment)
        session_queue.release(connection, batch.released)
        session_queue.release(connection, batch.suspected, last=True)

        gone = sum(claim.test_session_id in ours for claim in batch.gone)
        counted = {
            "test_sessions_saved": len(saved.changed),
            "test_sessions_unchanged": len(saved.unchanged) + gone,
            "test_sessions_dead": len(buried),
            "results_saved": saved.results,
        }
        # Last: whoever writes beside us waits for this row.
        warehouse.add_to_run(connection, self._run.etl_run_id, counted)
        lost = {claim.test_session_id for claim in batch.claims} - ours
        return _Recorded(saved, counted, buried, retried, lost)

    def _save(self, connection: Connection, batch: Batch, ours: set[str]) -> warehouse.Saved:
        """The rows of what was fetched, and the documents."""
        fetched = [item for item in batch.fetched if item.claim.test_session_id in ours]
        known = [item for item in fetched if item.results is None]
        # Nobody else writes what is ours; but `forget` deletes it, whoever has the claim.
        unchanged = warehouse.still_held(connection, [item.rows for item in known])
        saved = save_test_sessions(
            connection,
            [self._rows_to_save(item) for item in fetched if item.claim.test_session_id not in unchanged],
            self._run.etl_run_id,
            wanted=Wanted(self._run.export.result_details, self._run.account.id),
        )
        saved.unchanged |= unchanged
        if self._run.export.keep_payloads:
            kept = [
                payload
                for item in fetched
                if item.claim.test_session_id in saved.changed
                for payload in self._payloads(item.claim, item.detail)
            ]
            for unusable in batch.unusable:
                kept += self._rescued(unusable, ours)
            warehouse.save_payloads(connection, kept)
        return saved

    def _acknowledge(self, connection: Connection, batch: Batch, ours: set[str], moment: datetime) -> None:
        """What was saved leaves the queue, or is to be read again later."""
        done: list[str] = []
        polled: dict[str, datetime] = {}
        settling: dict[str, datetime] = {}
        accepted: dict[str, str] = {}
        for item in batch.fetched:
            id_ = item.claim.test_session_id
            if id_ not in ours:
                continue
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
        warehouse.accept_summary(connection, accepted, etl_run_id=self._run.etl_run_id)
        session_queue.ack(connection, done)
        session_queue.defer(connection, polled)
        session_queue.defer(connection, settling, source=session_queue.SETTLE)

    def _offer(self, connection: Connection, batch: Batch, ours: set[str]) -> None:
        """Hand ids that named no account to the account that is to be asked next."""
        offered = [(claim, to) for claim, to in batch.offered if claim.test_session_id in ours]
        session_queue.offer(connection, offered, asked=self._run.account.id)
        with self._run.outcome.lock:
            self._run.outcome.offered_to.update(to for _, to in offered)

    def _blame(
        self, connection: Connection, batch: Batch, ours: set[str], moment: datetime
    ) -> tuple[dict[str, Failure], dict[str, Failure]]:
        """What failed is buried, or tried again later: both by id."""
        to_bury = {
            _failure(item): item.claim.attempts + 1 for item in batch.unusable if item.claim.test_session_id in ours
        }
        to_retry: dict[Failure, tuple[int, datetime]] = {}
        for failed in batch.blamed:
            if failed.claim.test_session_id not in ours:
                continue
            attempts = failed.claim.attempts + 1
            if attempts >= self._run.export.max_attempts:
                to_bury[_failure(failed)] = attempts
            else:
                to_retry[_failure(failed)] = (attempts, moment + backoff(attempts))
        session_queue.retry(connection, to_retry)
        session_queue.bury(connection, to_bury)
        return (
            {failure.test_session_id: failure for failure in to_bury},
            {failure.test_session_id: failure for failure in to_retry},
        )

    def _payloads(self, claim: Claim, detail: Document) -> Iterator[Payload]:
        id_ = claim.test_session_id
        yield Payload(TEST_SESSION, id_, self._run.account.id, id_, detail)
        if claim.summary is not None:
            yield Payload(TEST_SESSION_SUMMARY, id_, self._run.account.id, id_, claim.summary)

    def _rescued(self, item: Failed, ours: set[str]) -> Iterable[Payload]:
        """The document of a dead letter: a later release may read it when Checkly has deleted it (`replay`).

        The client takes no document of another session.
        """
        id_ = item.claim.test_session_id
        if item.detail is None or id_ not in ours or item.work.held is not None:
            return ()
        return self._payloads(item.claim, item.detail)

    def _read_again_at(self, item: Fetched, moment: datetime) -> datetime | None:
        """When to read a session again: until it is final, and then at the settle delays if no list will tell."""
        session = item.rows.test_session
        if not item.rows.is_final:
            waited = moment - item.claim.waiting_since
            if waited >= self._run.export.running_max_age:
                return None
            return moment + max(self._run.export.running_poll, waited * POLL_SHARE)
        if session["created_at"] is not None:
            return None
        ended: datetime = session["stopped_at"] or session["started_at"]
        waited = moment - ended  # the end may lie at the end of time: nothing is added to it
        return min(
            (moment + (delay - waited) for delay in self._run.export.settle if delay > waited > NEVER), default=None
        )

    def _tell(self, batch: Batch, recorded: _Recorded) -> None:
        with self._run.outcome.lock:
            for name, more in recorded.counted.items():
                self._run.outcome.counters[name] += more
            self._run.outcome.retrying += len(recorded.retried)
        self._run.progress.advance(len(batch) - len(batch.released) - len(batch.suspected))
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

    def _rows_to_save(self, item: Fetched) -> TestSessionRows:
        is_whole = item.results is not None and len(item.detail.body) <= LARGE_BODY
        return item.rows if is_whole else item.work.rows(item.detail, self._run.account.id)


def _failure(item: Failed) -> Failure:
    error = item.error
    if isinstance(error, EtlError):
        return Failure(item.claim.test_session_id, error.kind, str(documents.storable(str(error))))
    # Not the error's own text: it may hold data.
    return Failure(item.claim.test_session_id, "bug", f"a bug in checkly-etl ({type(error).__name__}); see the log")

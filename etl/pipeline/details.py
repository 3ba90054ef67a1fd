"""Result details: results' own documents are read one by one, when the test sessions are safe.

Hides what becomes of each due result: read, tried again, or given up. A detail never holds its session back: the
session was saved in the transaction that made its results due (`saving.Wanted`), and stays saved whatever
happens here. Whose fault a failure is, `blame` says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection

from etl import details_due, normalize, warehouse
from etl.database import now
from etl.details_due import Due
from etl.documents import TEST_SESSION_RESULT, Document
from etl.errors import (
    ApiDown,
    ApiUnavailable,
    EtlError,
    Interrupted,
    LargeDocument,
    NotInPlan,
    PayloadError,
    TestSessionNotFound,
    UnusableSession,
)
from etl.normalize import Drift, ResultDetailRows
from etl.pipeline.blame import Suspects, backoff, note_bug
from etl.pipeline.run import AccountRun
from etl.pipeline.saving import regroup
from etl.warehouse import Payload

logger = logging.getLogger(__name__)

BATCH = 100  # results claimed at a time, if the budget of a minute allows as many: a lease must not end before


def fetch_result_details(run: AccountRun, *, only: Sequence[str] | None = None) -> None:
    """Read the details that are due, until none is; `only` of these test sessions, if given.

    What cannot be read is a warning, an API that does not work a failure. Raises FatalError or RateLimited for what
    ends the account, with every claim given back.
    """
    if run.export.result_details == "none" or run.etl.stop.is_set():
        return
    details = _Details(run, only)
    try:
        details.work()
    except NotInPlan as error:
        run.tell(f"{error}: results have no details; set export.result_details to none", "result-details")
    except ApiDown as error:
        run.fail(f"result details wait for the next pass, all test sessions are saved: {error}", "result-details")
    finally:
        if details.unread:
            run.warn(
                f"{details.unread} result details could not be read, the last because: {details.last_error}; "
                "their test sessions are exported all the same",
                "result-details",
            )


@dataclass(frozen=True, slots=True)
class _Brought:
    """What a worker thread came back with: a document without its sections, or an error."""

    due: Due
    document: Document | None = None
    error: Exception | None = None


_Failed = tuple[Due, Exception]


@dataclass(slots=True)
class _Became:
    """What became of the due results of one test session, for one transaction."""

    read: list[tuple[Due, Document, ResultDetailRows]] = field(default_factory=list)
    blamed: list[Due] = field(default_factory=list)  # to be tried again
    given_up: list[Due] = field(default_factory=list)
    drift: Drift = field(default_factory=Drift)

    @property
    def dues(self) -> list[Due]:
        return [*(due for due, _, _ in self.read), *self.blamed, *self.given_up]


class _Details:
    """One reading of one account's due results."""

    def __init__(self, run: AccountRun, only: Sequence[str] | None) -> None:
        self.unread = 0  # given up, but for those that Checkly no longer has
        self.last_error = ""
        self._run = run
        self._only = only
        self._claimed: set[Due] = set()  # neither recorded nor given back
        self._became: dict[str, _Became] = {}  # by session
        self._suspects = Suspects[_Failed](run)

    def work(self) -> None:
        """Claim, fetch and record until nothing is due."""
        run = self._run
        due = run.database.read(partial(details_due.count_due, account_id=run.account.id, only=self._only))
        if not due:
            return
        run.progress.begin("result details", due)
        pool = ThreadPoolExecutor(run.export.concurrency, thread_name_prefix="details")
        try:
            while not run.stop.is_set() and (batch := self._claim()):
                self._work_off(pool, batch)
            if not run.stop.is_set():
                self._blame_all(self._suspects.judge())
                self._record_all()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._give_back()

    def _claim(self) -> list[Due]:
        batch = self._run.database.run(
            partial(
                details_due.claim,
                account_id=self._run.account.id,
                limit=min(BATCH, self._run.account.requests_per_minute or BATCH),
                lease=self._run.export.lease,
                only=self._only,
            )
        )
        self._claimed.update(batch)
        return batch

    def _work_off(self, pool: ThreadPoolExecutor, batch: Sequence[Due]) -> None:
        """Fetch a batch and record it, also when something ends the phase in the middle of it."""
        ending: EtlError | None = None
        for item in self._as_they_come(pool, batch):
            try:
                self._sort(item)
            except EtlError as error:
                ending = ending or error
                self._suspects.take()  # they go back unblamed, whatever else may still come
                self._run.stop.set()  # no further call, no short retries any more
        self._record_all()
        if ending is not None:
            raise ending

    def _as_they_come(self, pool: ThreadPoolExecutor, batch: Sequence[Due]) -> Iterator[_Brought]:
        """Each when its call has ended. After a stop, those that end within `schedule.grace`."""
        flying: set[Future[_Brought]] = {pool.submit(self._fetch, due) for due in batch}
        while flying and not self._run.stop.is_set():
            done, flying = wait(flying, timeout=0.2, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        for future in flying:
            future.cancel()
        done, _ = wait(flying, timeout=self._run.etl.settings.schedule.grace.total_seconds())
        yield from (future.result() for future in done if not future.cancelled())

    def _fetch(self, due: Due) -> _Brought:
        """In a worker thread: HTTP, and nothing is held that is not kept."""
        fetch = partial(self._run.client.fetch_test_session_result, due.test_session_id, due.test_session_result_id)
        try:
            try:
                return _Brought(due, normalize.reduced_result(fetch()))
            except LargeDocument:
                with self._run.etl.large:
                    return _Brought(due, normalize.reduced_result(fetch(alone=True)))
        except Exception as error:  # noqa: BLE001 - carried to the main thread
            return _Brought(due, error=error)

    def _sort(self, item: _Brought) -> None:
        """Note what is to be recorded. Raises what ends the phase; its claim is given back unblamed."""
        due, error = item.due, item.error or AssertionError("neither document nor error")
        if item.document is not None:
            self._answered()
            self._normalize(due, item.document)
            return
        match error:
            case ApiUnavailable() | PayloadError():  # no answer, or not what was asked for
                self._suspects.add((due, error), error, what="result", id_=due.test_session_result_id)
                if self._suspects.are_too_many:
                    self._blame_all(self._suspects.judge())
            case NotInPlan():
                raise error
            case UnusableSession():
                self._answered()
                self._give_up(due, error)
            case Interrupted():
                pass
            case EtlError():
                raise error
            case _:
                self._note_bug(due, error)
                self._blame(due, error)

    def _normalize(self, due: Due, document: Document) -> None:
        became = self._became_of(due)
        try:
            rows = normalize.normalize_result_detail(document, test_session_result_id=due.test_session_result_id)
        except PayloadError as error:
            became.drift.note(TEST_SESSION_RESULT, error.json_path, error.reason)  # `status` shows it
            self._give_up(due, error)
            return
        became.drift.add(rows.drift)
        became.read.append((due, document, rows))

    def _answered(self) -> None:
        """The API works, so what failed since its last answer was the result's own fault."""
        self._blame_all(self._suspects.answered())

    def _blame_all(self, failed: Sequence[_Failed]) -> None:
        for due, error in failed:
            if isinstance(error, UnusableSession):
                self._give_up(due, error)
            else:
                self._blame(due, error)

    def _became_of(self, due: Due) -> _Became:
        return self._became.setdefault(due.test_session_id, _Became())

    def _blame(self, due: Due, error: Exception) -> None:
        if due.attempts + 1 >= self._run.export.max_attempts:
            self._give_up(due, error)
            return
        logger.debug("result %s will be tried again: %s", due.test_session_result_id, error)
        self._became_of(due).blamed.append(due)

    def _give_up(self, due: Due, error: Exception) -> None:
        logger.debug("result %s has no details: %s", due.test_session_result_id, error)
        self._became_of(due).given_up.append(due)
        if not isinstance(error, TestSessionNotFound):
            self.unread += 1
            self.last_error = str(error) if isinstance(error, EtlError) else "a bug in checkly-etl, see the log"

    def _note_bug(self, due: Due, error: Exception) -> None:
        what = f"result {due.test_session_result_id} of test session {due.test_session_id}"
        note_bug(self._run.outcome, what, error)

    # --- record ---

    def _record_all(self) -> None:
        """One transaction a test session."""
        while self._became:
            test_session_id, became = self._became.popitem()
            try:
                self._run.database.run(partial(self._write, test_session_id=test_session_id, became=became))
            except EtlError:
                raise
            except Exception as error:
                if not became.read:
                    raise
                # Without the documents, so that they hold up nobody else's.
                self._note_bug(became.read[0][0], error)
                self._became[test_session_id] = _Became(blamed=became.blamed, given_up=became.given_up)
                for due, _, _ in became.read:
                    self._blame(due, error)
                continue
            self._claimed.difference_update(became.dues)
            self._run.progress.advance(len(became.read) + len(became.given_up))

    def _write(self, connection: Connection, test_session_id: str, became: _Became) -> None:
        """One transaction: details, payloads, executions, and what is no longer due."""
        test_session = warehouse.held_columns(connection, [test_session_id], lock=True).get(test_session_id)
        still_due = details_due.lock(connection, became.dues)
        read = {due.test_session_result_id: (document, rows) for due, document, rows in became.read}
        there: set[str] = set()
        if test_session is not None:  # else it was forgotten meanwhile
            wanted = {id_: rows.columns for id_, (_, rows) in read.items() if id_ in still_due}
            there = warehouse.save_details(connection, test_session_id, wanted)
        if self._run.export.keep_payloads:
            account_id = self._run.account.id
            warehouse.save_payloads(
                connection,
                [Payload(TEST_SESSION_RESULT, id_, account_id, test_session_id, read[id_][0]) for id_ in there],
            )
        details_due.done(connection, [*(due for due, _, _ in became.read), *became.given_up])
        if became.blamed:
            attempts = max(due.attempts for due in became.blamed) + 1
            details_due.retry(connection, became.blamed, now(connection) + backoff(attempts))
        is_regrouped = False
        # Once for all of a session's results, however many batches they are.
        if test_session is not None and not details_due.is_left(connection, test_session_id):
            is_regrouped = regroup(connection, test_session)
        if there or is_regrouped:
            warehouse.stamp(connection, test_session_id, self._run.etl_run_id)
        warehouse.add_to_run(connection, self._run.etl_run_id, {})
        warehouse.save_drift(connection, [became.drift])

    def _give_back(self) -> None:
        if not self._claimed:
            return
        try:
            self._run.database.run(partial(details_due.release, dues=list(self._claimed)))
        except EtlError as error:
            logger.debug("results could not be given back, their leases end by themselves: %s", error)

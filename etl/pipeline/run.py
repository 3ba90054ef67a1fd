"""What the phases of a run share: its context, its outcome, and one account's part of it.

Hides how a client is put together for an account. Knows no phase.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from etl import warehouse
from etl.checkly import Client
from etl.config import Account, Export, Settings
from etl.database import Database
from etl.errors import EXIT_OK, EXIT_UNREACHABLE, EXIT_WARNING, Interrupted, runbook
from etl.pipeline.pacing import Pacer

logger = logging.getLogger(__name__)
_NO_ANSWER = ("unreachable", "server_error", "unreadable")  # of checkly.CALL_OUTCOMES
T = TypeVar("T")


class Progress(Protocol):
    """How far a long command is, for a terminal."""

    def begin(self, what: str, total: int | None) -> None:
        """A new phase of `total` steps (None: unknown)."""

    def advance(self, steps: int) -> None:
        """So many steps of the phase are done."""

    def note(self, text: str) -> None:
        """Why nothing moves; gone with the next step. From any thread."""

    def end(self) -> None:
        """No phase any more."""


class Silent:
    """Progress that is not shown."""

    def begin(self, what: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, steps: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


@dataclass(slots=True)
class Etl:
    """What every command works with. Setting `stop` ends it soon, with its claims given back.

    `time_is_up` says that `stop` was set by the end of --max-time, not by a signal. `only_accounts` are ids or names
    of the accounts to work for; none means all. `large` is held while one large document is in memory: there is
    never a second one, however many accounts work side by side.
    """

    settings: Settings
    database: Database
    user_agent: str = "checkly-etl"
    stop: threading.Event = field(default_factory=threading.Event)
    time_is_up: bool = False
    progress: Progress = field(default_factory=Silent)
    only_accounts: tuple[str, ...] = ()
    large: threading.Lock = field(default_factory=threading.Lock)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts to work for, each with a key. Raises ConfigError if one is missing."""
        return self.settings.require_accounts(self.only_accounts)

    def is_default(self, account: Account) -> bool:
        """Tell whether ids that name no account are asked for with this one first."""
        return account.id == self.settings.checkly.accounts[0].id


class SharedProgress:
    """The progress of several accounts that work side by side, as one phase with the sum of their steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._phases: dict[int, tuple[int | None, int]] = {}  # by part: total and steps done

    def part(self) -> Progress:
        """Return the progress of one account."""
        with self._lock:
            number = len(self._phases)
            self._phases[number] = (0, 0)
        return _Part(self, number)

    def begin(self, number: int, what: str, total: int | None) -> None:
        """One part begins a phase: the bar shows the sum of all parts."""
        with self._lock:
            self._phases[number] = (total, 0)
            totals = [total for total, _ in self._phases.values()]
            known = [total for total in totals if total is not None]
            self._progress.begin(what, sum(known) if len(known) == len(totals) else None)
            self._progress.advance(sum(done for _, done in self._phases.values()))

    def advance(self, number: int, steps: int) -> None:
        """One part has done so many steps."""
        with self._lock:
            total, done = self._phases[number]
            self._phases[number] = (total, done + steps)
            self._progress.advance(steps)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._progress.note(text)


@dataclass(frozen=True, slots=True)
class _Part:
    shared: SharedProgress
    number: int

    def begin(self, what: str, total: int | None) -> None:
        self.shared.begin(self.number, what, total)

    def advance(self, steps: int) -> None:
        self.shared.advance(self.number, steps)

    def note(self, text: str) -> None:
        self.shared.note(text)

    def end(self) -> None:
        """The phase ends with the run, when all parts have ended."""


@dataclass(slots=True)
class InboxCount:
    """What one inbox brought in this run."""

    is_up: bool = True
    messages: int = 0
    rejected: int = 0
    advice: list[str] = field(default_factory=list)  # what to do about these


@dataclass(slots=True)
class Outcome:
    """How a run ended. `failures` mean exit 3, `warnings` and dead letters exit 1.

    `calls` counts the API's answers by what they were, `freshness` is v_freshness of the accounts of the run at the
    end of a sync, `undiscovered` the accounts whose list was not read to its end. Accounts that work side by side
    fill one outcome: `lock` is held for each change.
    """

    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(warehouse.COUNTERS, 0))
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    listed: int = 0
    enqueued: int = 0
    retrying: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    inboxes: dict[str, InboxCount] = field(default_factory=dict)
    freshness: list[dict[str, Any]] = field(default_factory=list)
    waited: list[dict[str, Any]] = field(default_factory=list)  # of `sync --wait`
    undiscovered: set[str] = field(default_factory=set)
    offered_to: set[str] = field(default_factory=set)  # accounts that got ids which another one does not have
    failed: set[str] = field(default_factory=set)  # accounts of which something failed
    refused: set[str] = field(default_factory=set)  # accounts whose work ended early: their key, or a long pause
    is_interrupted: bool = False
    is_out_of_time: bool = False
    bug: BaseException | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @property
    def word(self) -> str:
        """As in `etl_runs.outcome`."""
        if self.is_interrupted:
            return "interrupted"
        if self.failures or self.bug is not None:
            return "failed"
        left = self.counters["test_sessions_dead"] or self.retrying or self.warnings or self.is_out_of_time
        return "partial" if left else "ok"

    @property
    def is_unanswered(self) -> bool:
        """Whether the API was asked, and never answered."""
        return self.counters["api_requests"] > 0 and self.calls.total() == sum(self.calls[no] for no in _NO_ANSWER)

    @property
    def error(self) -> str | None:
        """What went wrong or is left to do, in one text."""
        problems = [*self.failures, *self.warnings]
        if dead := self.counters["test_sessions_dead"]:
            problems.append(
                f"{dead} test session{'s' * (dead > 1)} could not be exported; see: checkly-etl dead list"
            )
        if self.bug is not None:
            problems.append(f"a bug in checkly-etl: {type(self.bug).__name__}")
        if self.is_out_of_time:
            due = {row["account_id"]: row["due"] for row in self.freshness if row["due"]}
            problem = "stopped by --max-time" + (f", {sum(due.values()):,} test sessions still due" if due else "")
            if due and len(self.freshness) > 1:
                each = [f"{count:,} of account {id_ or '(not assigned yet)'}" for id_, count in due.items()]
                problem += f" ({', '.join(each)})"
            problems.append(problem)
        return "; ".join(problems) or None

    def warn(self, message: str, section: str) -> None:
        """Exit 1; `section` of the runbook says what to do."""
        with self.lock:
            if message in self.warnings:
                return
            self.warnings.append(message)
        logger.warning("%s", message, extra=runbook(section))

    def fail(self, message: str, section: str) -> None:
        """Exit 3; `section` of the runbook says what to do."""
        with self.lock:
            self.failures.append(message)
        logger.error("%s", message, extra=runbook(section))

    def summary(self, command: str) -> str:
        """The run in one line."""
        c = self.counters
        told = [
            f"{c['test_sessions_saved']:,} saved",
            f"{c['test_sessions_unchanged']:,} unchanged",
            f"{c['test_sessions_dead']:,} dead",
        ]
        if self.retrying:
            told.append(f"{self.retrying:,} to be tried again")
        parts = [f"{c['results_saved']:,} results, {c['api_requests']:,} API calls"]
        if messages := sum(count.messages for count in self.inboxes.values()):
            parts.insert(0, f"{messages:,} inbox message{'s' * (messages > 1)}")
        if c["throttled_ms"] >= 1000:
            parts.append(f"{c['throttled_ms'] / 1000:,.0f} s waited for the rate budget")
        return f"{command} {self.word}: test sessions {', '.join(told)}; {', '.join(parts)}"

    @property
    def fields(self) -> dict[str, Any]:
        """The same for machines."""
        return {"outcome": self.word, **self.counters}

    @property
    def exit_code(self) -> int:
        """The most severe wins: 3, 1, 0."""
        if self.failures:
            return EXIT_UNREACHABLE
        return EXIT_WARNING if self.counters["test_sessions_dead"] or self.warnings or self.bug else EXIT_OK


class AccountStop(threading.Event):
    """Set when the whole run is to stop, or when this account's part of it is over."""

    def __init__(self, whole: threading.Event) -> None:
        super().__init__()
        self._whole = whole

    def is_set(self) -> bool:
        return self._whole.is_set() or super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = 0.2 if end is None else min(0.2, end - time.monotonic())
            if left <= 0:
                return False
            self._whole.wait(left)
        return True


@dataclass(slots=True)
class AccountRun:
    """One account in one run."""

    etl: Etl
    account: Account
    is_default: bool
    etl_run_id: str
    client: Client
    pacer: Pacer
    stop: AccountStop
    outcome: Outcome
    progress: Progress
    failures_in_a_row: int = 0  # of the API, with no answer between

    @property
    def database(self) -> Database:
        """The warehouse's database."""
        return self.etl.database

    @property
    def export(self) -> Export:
        """The settings of the export."""
        return self.etl.settings.export

    def call(self, work: Callable[[], T]) -> T:
        """A call of the API, so that a stop need not wait for its time-out: see `in_thread`."""
        return in_thread(self.etl, work)

    def _of_account(self, message: str) -> str:
        """Which account it is about, where there are several and the message does not say so itself."""
        if len(self.etl.settings.checkly.accounts) < 2 or self.account.id in message:
            return message
        name = f"{self.account.name} ({self.account.id})" if self.account.name else self.account.id
        return f"account {name}: {message}"

    def tell(self, message: str, section: str) -> None:
        """A warning in the log that changes no exit code."""
        logger.warning("%s", self._of_account(message), extra=runbook(section))

    def warn(self, message: str, section: str) -> None:
        """Exit 1."""
        self.outcome.warn(self._of_account(message), section)

    def fail(self, message: str, section: str) -> None:
        """Exit 3."""
        with self.outcome.lock:
            self.outcome.failed.add(self.account.id)
        self.outcome.fail(self._of_account(message), section)

    def count_calls(self) -> None:
        """Add the account's calls to the run's counters; once, at its end."""
        with self.outcome.lock:
            counters = self.outcome.counters
            self.outcome.calls.update(self.client.calls.outcomes)
            counters["api_requests"] += self.client.calls.requests
            counters["api_retries"] += self.client.calls.retries
            counters["throttled_ms"] += self.pacer.throttled_ms


def in_thread(etl: Etl, work: Callable[[], T]) -> T:
    """Do what may hang in a thread of its own, so that a stop need not wait for its time-out.

    Raises what `work` raises; Interrupted if it has not ended `schedule.grace` after the stop.
    """
    return begin_in_thread(etl, work)()


def begin_in_thread(etl: Etl, work: Callable[[], T]) -> Callable[[], T]:
    """The same begun: what is returned waits for its end."""
    call: Future[T] = Future()

    def run() -> None:
        try:
            call.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            call.set_exception(error)

    def end() -> T:
        while not wait([call], timeout=0.2).done:
            grace = etl.settings.schedule.grace.total_seconds()
            if etl.stop.is_set() and not wait([call], timeout=grace).done:
                raise Interrupted("stopped, a call that hangs is left alone")
        return call.result()

    threading.Thread(target=run, name="call", daemon=True).start()
    return end


@contextmanager
def client_of(
    etl: Etl, account: Account, progress: Progress | None = None
) -> Iterator[tuple[Client, Pacer, AccountStop]]:
    """A client of the account, paced by its budget in the warehouse; what still calls at the end is told to stop."""
    checkly = etl.settings.checkly
    stop = AccountStop(etl.stop)
    note = (progress or etl.progress).note
    pacer = Pacer(etl.database, account.id, account.requests_per_minute, stop, note)
    client = Client(
        api_url=checkly.api_url,
        account_id=account.id,
        api_key=account.api_key.reveal(),
        key_name=account.api_key_env,
        user_agent=etl.user_agent,
        timeout=checkly.timeout.total_seconds(),
        max_body=checkly.max_body,
        pace=pacer,
        stop=stop,
        connections=etl.settings.export.concurrency + 1,
    )
    try:
        yield client, pacer, stop
    finally:
        stop.set()
        client.close()

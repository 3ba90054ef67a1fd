"""What happened since the daemon began: the one place where the passes write and HTTP reads.

Hides a lock. Asks nobody: neither the database nor the API.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from etl.pipeline import InboxCount, Outcome
from etl.warehouse import when_lost

TICK_SILENCE = 60.0  # seconds without a tick: the scheduler hangs
MISSES = 2  # due times in a row without a successful pass


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Totals since the daemon began, the pass under way included; `freshness` of the end of the last whole pass."""

    counters: Counter[str]
    calls: Counter[str]
    passes: Counter[str]
    inboxes: dict[str, InboxCount]
    freshness: list[dict[str, Any]]
    hours_since: float  # since `freshness` was read


class State:
    """Thread-safe."""

    def __init__(
        self, *, loss_warning_hours: float, accounts: Collection[str] = (), inboxes: Collection[str] = ()
    ) -> None:
        """`accounts` and `inboxes` are told from the start."""
        self._lock = threading.Lock()
        self._loss_warning_hours = loss_warning_hours
        self._ticked_at = time.monotonic()
        self._current: Outcome | None = None
        self._began_at = datetime.now(UTC)
        self._misses = 0
        self._why = ""
        self._counters: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._passes: Counter[str] = Counter()
        self._inboxes = {name: InboxCount() for name in inboxes}
        nothing = dict.fromkeys(("due", "scheduled", "leased", "dead"), 0)
        unknown = dict.fromkeys(("oldest_due_at", "last_success_at", "hours_until_loss"))
        self._freshness: list[dict[str, Any]] = [{"account_id": id_, **nothing, **unknown} for id_ in accounts]
        self._freshness_at = time.monotonic()
        self.durations: list[float] = []  # not yet told to the metrics

    # --- written by the scheduler's threads ---

    def ticked(self) -> None:
        """The scheduler works."""
        self._ticked_at = time.monotonic()

    def began(self, outcome: Outcome) -> None:
        """A pass begins; `outcome` is filled as it goes on."""
        with self._lock:
            self._current, self._began_at = outcome, datetime.now(UTC)

    def skipped(self) -> None:
        """A due time passed while the pass before was still going on."""
        with self._lock:
            self._misses += 1
            self._why = f"a pass has been going on since {self._began_at:%Y-%m-%d %H:%M:%S} UTC"

    def ended(self, outcome: Outcome, seconds: float) -> None:
        """The pass is over."""
        with self._lock:
            self._current = None
            self._counters.update(outcome.counters)
            self._calls.update(outcome.calls)
            self._passes[outcome.word] += 1
            self.durations.append(seconds)
            self._inboxes = _added(self._inboxes, outcome.inboxes)
            if outcome.freshness:
                self._freshness = outcome.freshness
                self._freshness_at = time.monotonic()
            if outcome.is_interrupted:
                return
            if outcome.failures or outcome.bug is not None:
                self._misses += 1
                self._why = outcome.error or "it failed"
            else:
                self._misses = 0

    # --- read by HTTP ---

    def is_live(self) -> tuple[bool, str]:
        """Whether the scheduler ticks."""
        silence = time.monotonic() - self._ticked_at
        if silence > TICK_SILENCE:
            return False, f"the scheduler has not ticked for {silence:.0f} s"
        return True, "the scheduler ticks"

    def is_well(self) -> tuple[bool, str]:
        """Whether data arrive, and in time; with the reason if not."""
        is_live, said = self.is_live()
        if not is_live:
            return False, said
        with self._lock:
            if self._misses >= MISSES:
                return False, f"{self._misses} passes in a row were due and did not succeed: {self._why}"
            hours = self._hours_until_loss()
            if hours is not None and hours < self._loss_warning_hours:
                return False, f"Checkly deletes test sessions that are not exported yet, {when_lost(hours)}"
        return True, "passes succeed"

    def snapshot(self) -> Snapshot:
        """Everything that the metrics tell."""
        with self._lock:
            counters, inboxes = Counter(self._counters), self._inboxes
            if self._current is not None:
                counters.update(self._current.counters)
                inboxes = _added(inboxes, dict(self._current.inboxes))
            return Snapshot(
                counters,
                Counter(self._calls),
                Counter(self._passes),
                inboxes,
                list(self._freshness),
                self._hours_since(),
            )

    def take_durations(self) -> list[float]:
        """Seconds of the passes that ended since the last call."""
        with self._lock:
            taken, self.durations = self.durations, []
        return taken

    def _hours_since(self) -> float:
        return (time.monotonic() - self._freshness_at) / 3600

    def _hours_until_loss(self) -> float | None:
        hours = [row["hours_until_loss"] for row in self._freshness if row["hours_until_loss"] is not None]
        return min(hours) - self._hours_since() if hours else None


def _added(totals: Mapping[str, InboxCount], more: Mapping[str, InboxCount]) -> dict[str, InboxCount]:
    """Totals with what one pass brought."""
    sums = dict(totals)
    for name, count in more.items():
        total = sums.get(name, InboxCount())
        sums[name] = InboxCount(count.is_up, total.messages + count.messages, total.rejected + count.rejected)
    return sums

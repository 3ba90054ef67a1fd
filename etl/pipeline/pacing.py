"""Waiting for the rate budget: the client's `Pace` over the warehouse's sliding window.

Hides that one thread asks the warehouse for all that wait, and how waiting is counted. A grant is used within
half a second or forfeited, because Checkly counts arrivals.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from etl import accounts
from etl.checkly import LONGEST_PAUSE
from etl.database import Database
from etl.errors import Interrupted, RateLimited

logger = logging.getLogger(__name__)

FRESH = 0.5  # seconds for which a grant may be used, and a look for pauses holds without a budget
WORTH_TELLING = 2.0


class Pacer:
    """The rate budget of one account for the threads of this process. Thread-safe."""

    def __init__(
        self,
        database: Database,
        account_id: str,
        per_minute: int,
        stop: threading.Event,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`tell` is told what is waited for, as the log is."""
        self._database, self._account_id, self._per_minute, self._stop = database, account_id, per_minute, stop
        self._tell = tell
        self._lock = threading.Lock()  # the numbers below
        self._turn = threading.Lock()  # one thread asks the warehouse at a time
        self._waiting = 0
        self._granted = 0
        self._granted_at = 0.0
        self._throttled = 0.0
        self._counted_until = 0.0
        self._told_until = 0.0
        self._paused = False

    @property
    def throttled_ms(self) -> int:
        """Milliseconds in which at least one thread waited."""
        with self._lock:
            return int(self._throttled * 1000)

    def acquire(self) -> None:
        """Return when one call may be made. Raises RateLimited for a long pause, Interrupted when stopped."""
        with self._lock:
            if self._spend():
                return
            self._waiting += 1
        try:
            while not self._take():
                pass
        finally:
            with self._lock:
                self._waiting -= 1

    def _spend(self) -> bool:
        """Use a grant that is there, under the lock."""
        is_granted = self._granted > 0 and time.monotonic() - self._granted_at < FRESH and not self._stop.is_set()
        self._granted -= is_granted
        return is_granted

    def pause(self, seconds: float | None) -> None:
        """Pause the account everywhere, for Retry-After's seconds if there are any."""
        left = self._database.run(lambda c: accounts.pause(c, self._account_id, seconds))
        with self._lock:
            self._granted = 0
            self._paused = True
        self._give_up_if_long(left)

    def answered(self) -> None:
        """The API answered again."""
        if not self._paused:  # nearly always: not worth to wait for the lock
            return
        with self._lock:
            was_paused, self._paused = self._paused, False
        if was_paused:
            self._database.run(lambda c: accounts.answered(c, self._account_id))

    def _take(self) -> bool:
        with self._turn:
            if self._stop.is_set():
                raise Interrupted("stopped before the next call")
            with self._lock:
                if self._spend():
                    return True
                wanted = self._waiting
            if self._per_minute == 0:
                wanted = 1_000_000  # no budget to spend: only look for pauses now and then
            grant = self._database.run(
                lambda c: accounts.take(c, self._account_id, wanted=wanted, per_minute=self._per_minute)
            )
            if grant.calls:
                with self._lock:
                    self._granted, self._granted_at = grant.calls - 1, time.monotonic()
                return True
        if grant.paused:
            self._give_up_if_long(grant.wait)
        self._wait(grant.wait, "the API asked for a pause" if grant.paused else "the rate budget is spent")
        return False

    def _wait(self, seconds: float, why: str) -> None:
        began = time.monotonic()
        with self._lock:
            is_news = began + seconds > self._told_until + WORTH_TELLING
            self._told_until = max(self._told_until, began + seconds)
        if is_news and seconds > WORTH_TELLING:
            told = f"waiting {seconds:.0f} s: {why}"
            logger.info("%s", told)
            self._tell(told)
        was_stopped = self._stop.wait(seconds + 0.005)
        ended = time.monotonic()
        with self._lock:
            # Threads wait together: their time counts once.
            self._throttled += max(0.0, ended - max(began, self._counted_until))
            self._counted_until = max(self._counted_until, ended)
        if was_stopped:
            raise Interrupted("stopped while waiting for the rate budget")

    def _give_up_if_long(self, seconds: float) -> None:
        if seconds > LONGEST_PAUSE:
            raise RateLimited(
                f"the API asked account {self._account_id} for a pause of {seconds:.0f} s more; "
                "nothing is lost, run again after that",
                seconds=seconds,
            )

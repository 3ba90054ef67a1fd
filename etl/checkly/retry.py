"""Retries within seconds: what became of one call, and whether and when it is made again.

Long retries (minutes) are the queue's. The decision is a value: `Tries.wait_after` returns seconds, or None.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from etl.errors import (
    AccessDenied,
    ApiUnavailable,
    EtlError,
    Forbidden,
    PayloadError,
    RateLimited,
    Rejected,
    TestSessionNotFound,
)

E = TypeVar("E", bound=Exception)

TRIES = 4
FIRST_BACKOFF = 0.5  # seconds; doubles
LONGEST_RETRY_AFTER = 30.0  # seconds, of a 5xx; a longer one is left to the queue
LONGEST_PAUSE = 300.0  # seconds, of a 429; a longer one ends the pass

# What may become of one call, for the metrics.
CALL_OUTCOMES = (
    "ok",
    "not_found",
    "refused",
    "rejected",
    "throttled",
    "server_error",
    "unreachable",
    "unreadable",
)


class Failed(Exception):
    """One call came to nothing. `is_passing` tells whether another try may help; never seen outside of this room."""

    def __init__(
        self,
        reason: str,
        retry_after: float | None = None,
        *,
        kind: str = "unavailable",
        is_passing: bool = True,
        step: str = "answer",
    ) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.kind, self.is_passing = reason, retry_after, kind, is_passing
        self.step = step


class Throttled(Exception):
    """The API answered 429; never seen outside of this room."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__("429")
        self.retry_after = retry_after


@dataclass(slots=True)
class Tries:
    """The tries of one call; `most` of them, and none is begun later than `timeout` seconds after the first."""

    what: str
    most: int
    timeout: float
    failures: int = 0
    began: float | None = None
    throttled_since: float | None = None
    has_failed_otherwise: bool = False  # not each failure was the document's own

    def begin(self) -> bool:
        """Note that a try begins; returns whether it repeats one."""
        # Waiting for one's turn says nothing about the API: time counts from the first call.
        self.began = self.began or time.monotonic()
        return self.failures > 0 or self.throttled_since is not None

    def throttled(self) -> None:
        """Note a 429: no failure, and time counts from the next call. Raises RateLimited after minutes of them."""
        self.began = None
        self.throttled_since = self.throttled_since or time.monotonic()
        if time.monotonic() - self.throttled_since > LONGEST_PAUSE:
            raise RateLimited(
                f"{self.what}: the API has answered 429 for {LONGEST_PAUSE:.0f} s; try again later",
                seconds=LONGEST_PAUSE,
            )

    def wait_after(self, failed: Failed | PayloadError) -> float | None:
        """Return the seconds to wait before the next try; None if there is none."""
        self.failures += 1
        wait = FIRST_BACKOFF * 2 ** (self.failures - 1) * random.uniform(0.5, 1.5)  # noqa: S311
        may_help = True
        if isinstance(failed, Failed):
            self.has_failed_otherwise = True
            wait = failed.retry_after or wait
            may_help = failed.is_passing
        is_over = self.failures >= self.most or time.monotonic() + wait - (self.began or 0) > self.timeout
        return wait if may_help and not is_over and wait <= LONGEST_RETRY_AFTER else None

    def given_up(self, failed: Failed | PayloadError) -> EtlError:
        """Return what to raise when there is no further try."""
        tried = f" ({self.failures} tries)" if self.failures > 1 else ""
        if isinstance(failed, Failed):
            return ApiUnavailable(f"{self.what}: {failed.reason}{tried}", kind=failed.kind, step=failed.step)
        # One broken document may be the fault of the way; the same each time is its own.
        if not self.has_failed_otherwise and self.failures >= min(2, self.most):
            return failed
        return ApiUnavailable(f"{self.what}: {failed}{tried}", kind="unreadable")


def outcome_of(error: Exception) -> str:
    """Return which of CALL_OUTCOMES a failed call is."""
    match error:
        case Failed(kind="unreadable") | PayloadError():
            return "unreadable"
        case Failed(step="answer"):
            return "server_error"
        case Throttled():
            return "throttled"
        case TestSessionNotFound():
            return "not_found"
        case AccessDenied() | Forbidden():
            return "refused"
        case Rejected():
            return "rejected"  # a 402 as well
        case _:
            return "unreachable"


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, in either form (seconds, or an HTTP date).

    None if it says nothing, nothing that can be read, or no time at all: our own backoff is better than a storm.
    https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Retry-After
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        seconds = float(text[:20])
    else:
        moment = http_date(text)
        if moment is None:
            return None
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(seconds, 86_400.0) if seconds > 0 else None


def http_date(text: str) -> datetime | None:
    """Return the time of an HTTP date in UTC; None if it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def bare(error: E) -> E:
    """Return an error without traceback and causes: their frames hold the body, and errors are kept for a while."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)

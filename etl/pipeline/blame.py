"""Blame: whose fault a failure is, and how long to wait until it is tried again.

Hides that nobody knows while the API does not answer, or answers with something else than was asked for (some
proxy's page): what failed since its last answer is a *suspect*, counted as its own fault only when the API answers
again, and given back unblamed when it turns out to be an outage.
"""

from __future__ import annotations

import logging
import random
from datetime import timedelta
from typing import Generic, TypeVar

from etl.errors import ApiDown, ApiUnavailable, UnusableSession, runbook
from etl.pipeline.run import AccountRun, Outcome

logger = logging.getLogger(__name__)
T = TypeVar("T")

FAILURES_IN_A_ROW = 10  # of the API with no answer between: an outage
FIRST_RETRY = timedelta(minutes=1)  # doubles with each attempt
LONGEST_RETRY = timedelta(hours=1)


class Suspects(Generic[T]):
    """What failed since the API's last answer."""

    def __init__(self, run: AccountRun) -> None:
        self._run = run
        self._failed: list[tuple[T, Exception]] = []
        self._last = "no answer"

    @property
    def are_too_many(self) -> bool:
        """Whether it is time to `judge`. Failures of the list and of error groups count, too."""
        return self._run.failures_in_a_row >= FAILURES_IN_A_ROW

    def add(self, item: T, error: Exception, *, what: str, id_: str) -> None:
        """One more; `what` and `id_` name it to people."""
        self._failed.append((item, error))
        self._last = str(error) if id_ in str(error) else f"{what} {id_}: {error}"
        self._run.failures_in_a_row += 1

    def answered(self) -> list[T]:
        """The API works: takes those whose own fault it was."""
        self._run.failures_in_a_row = 0
        return self.take()

    def judge(self) -> list[T]:
        """Is it the API, or are they? The same as `answered`, or raises ApiDown; then they are still to be taken.

        The API is asked once more, unless it was silent for so long that it is not worth another call. What cannot be
        read is not silence: something answered, and the list may tell whether that was the API.
        """
        if not self._failed:
            return []
        is_silent = not any(_is_answer(error) for _, error in self._failed)
        if (is_silent and self.are_too_many) or not self._run.call(self._run.client.is_answering):
            raise ApiDown(
                f"the API does not work, the last {self._run.failures_in_a_row} calls failed ({self._last}); "
                "nothing is lost, run again when it is back"
            )
        return self.answered()

    def take(self) -> list[T]:
        """All of them; none is left."""
        taken, self._failed = self.items, []
        return taken

    @property
    def items(self) -> list[T]:
        """Those that there are."""
        return [item for item, _ in self._failed]


def _is_answer(error: Exception) -> bool:
    return isinstance(error, UnusableSession) or (isinstance(error, ApiUnavailable) and error.kind == "unreadable")


def backoff(attempts: int) -> timedelta:
    """How long to wait after so many failures, about."""
    delay: timedelta = min(FIRST_RETRY * 2 ** min(attempts - 1, 10), LONGEST_RETRY)
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter


def note_bug(outcome: Outcome, what: str, error: Exception) -> None:
    """An error that is none of ours: its traceback goes to the log, the run goes on and ends with it."""
    logger.error("%s: a bug in checkly-etl; please report the traceback", what, exc_info=error, extra=runbook("bug"))
    outcome.bug = outcome.bug or error

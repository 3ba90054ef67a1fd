"""When a pass is due. Hides APScheduler, and what its cron gets wrong.

`CronTrigger.from_crontab` counts weekdays from Monday, wants day of month *and* weekday where crontab(5) wants
either, and fires twice when the clocks go back. `Crontab` asks cronsim instead, which does as Debian's cron: a time
that the spring change leaves out is made up for right after it, one that the autumn change repeats counts once, and
`*` in hours or minutes goes by real time. https://manpages.debian.org/bookworm/cron/crontab.5.en.html
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, JobSubmissionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from cronsim import CronSim

from etl import config

logger = logging.getLogger(__name__)

TICK_SECONDS = 5
PASS, TICK = "pass", "tick"
SET_BACK = 30.0  # seconds that the clock may go back without the schedule being begun anew


class Crontab(BaseTrigger):  # type: ignore[misc] # APScheduler is not typed
    """Fires when a line of crontab(5) says so, in a time zone. `line` must be one that cronsim reads."""

    def __init__(self, line: str, zone: tzinfo) -> None:
        self._line, self._zone = line, zone

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """The first time after `now`: what was missed before is one pass, not many."""
        after = now if previous is None else max(previous, now)
        # cronsim counts local times, of which some come twice: what it says may lie behind us.
        for moment in CronSim(self._line, after.astimezone(self._zone)):
            if moment.astimezone(UTC) > after.astimezone(UTC):
                return moment
        return None

    def __str__(self) -> str:
        return f"cron {self._line} ({self._zone})"


class Schedule:
    """Runs `run_pass` at once and whenever it is due, one at a time, and `tick` every few seconds.

    `skipped` is told of a due time at which the pass before was still going on. `with` begins it, its end waits for
    the pass under way.
    """

    def __init__(
        self,
        settings: config.Schedule,
        *,
        run_pass: Callable[[], object],
        tick: Callable[[], object],
        skipped: Callable[[], object],
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        zone = UTC if settings.timezone == "UTC" else ZoneInfo(settings.timezone)
        self.trigger = trigger_of(settings, zone)
        self._skipped = skipped
        self._zone = zone
        self._offset = _clock_offset()
        self._scheduler = BackgroundScheduler(
            timezone=zone,
            executors={PASS: ThreadPoolExecutor(1), TICK: ThreadPoolExecutor(1)},
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
        )
        self._scheduler.add_listener(self._on_skip, EVENT_JOB_MAX_INSTANCES)
        at_once = {"next_run_time": datetime.now(zone)}
        self._scheduler.add_job(run_pass, self.trigger, id=PASS, executor=PASS, **at_once)
        every = IntervalTrigger(seconds=tick_seconds, timezone=UTC)
        self._scheduler.add_job(tick, every, id=TICK, executor=TICK, **at_once)

    def __enter__(self) -> Schedule:
        self._scheduler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.shutdown(wait=True)

    def __str__(self) -> str:
        is_cron = isinstance(self.trigger, Crontab)
        return str(self.trigger) if is_cron else f"a pass every {self.trigger.interval}"

    def look_at_the_clock(self) -> None:
        """Begin anew if the clock was set back: the next pass would wait for a time that lies far ahead."""
        offset = _clock_offset()
        if offset < self._offset - SET_BACK:
            logger.debug("the clock was set back by %.0f s: the schedule begins anew", self._offset - offset)
            for job in self._scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(self._zone))
        self._offset = offset

    def _on_skip(self, event: JobSubmissionEvent) -> None:
        if event.job_id == PASS:
            logger.debug("a pass was due, but the one before is still going on")
            self._skipped()


def trigger_of(settings: config.Schedule, zone: tzinfo) -> Any:
    """The trigger that the settings mean."""
    if settings.cron is not None:
        return Crontab(settings.cron, zone)
    interval = settings.interval or timedelta(minutes=15)
    return IntervalTrigger(seconds=int(interval.total_seconds()), timezone=UTC)


def _clock_offset() -> float:
    return time.time() - time.monotonic()

"""When a pass is due: crontab(5) in zones with and without daylight saving time, intervals, and one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from cronsim import CronSimError
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import config
from etl.daemon.schedule import Crontab, Schedule, trigger_of
from tests.harness import wait_until

BERLIN = ZoneInfo("Europe/Berlin")  # clocks change at 01:00 UTC: 2026-03-29 and 2026-10-25
NEW_YORK = ZoneInfo("America/New_York")  # 2026-03-08 and 2026-11-01, at 02:00 local time
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # half an hour: 2026-04-05 and 2026-10-04
KOLKATA = ZoneInfo("Asia/Kolkata")  # none, and half an hour off


def fires(line: str, zone: Any, start: str, end: str) -> list[str]:
    """Local times with offset at which a line fires from `start` (exclusive) until `end`, as a daemon sees it."""
    trigger = Crontab(line, zone)
    moment = datetime.fromisoformat(start).replace(tzinfo=zone).astimezone(UTC)
    last = datetime.fromisoformat(end).replace(tzinfo=zone).astimezone(UTC)
    found: list[str] = []
    previous: datetime | None = None
    while True:
        fire = trigger.get_next_fire_time(previous, moment)
        if fire is None or fire.astimezone(UTC) > last:
            return found
        assert fire.astimezone(UTC) > moment, "it must lie ahead"
        found.append(fire.isoformat(timespec="minutes"))
        previous, moment = fire, fire.astimezone(UTC)


# --- the three things that APScheduler's own cron gets wrong -------------------------------------------------------


@pytest.mark.parametrize("weekday", ["0", "7", "sun", "SUN"])
def test_weekdays_count_from_sunday(weekday: str) -> None:
    assert fires(f"0 12 * * {weekday}", UTC, "2026-11-23", "2026-11-30") == ["2026-11-29T12:00+00:00"]
    wrong = CronTrigger.from_crontab("0 12 * * 0", timezone=UTC)
    assert wrong.get_next_fire_time(None, datetime(2026, 11, 23, tzinfo=UTC)).strftime("%A") == "Monday", (
        "APScheduler counts as crontab does now: this trigger of ours may go"
    )


def test_day_of_month_and_weekday_mean_either_if_both_are_given() -> None:
    assert fires("0 0 1 * mon", UTC, "2026-11-30T01:00", "2026-12-15") == [
        "2026-12-01T00:00+00:00",  # a Tuesday, but the first
        "2026-12-07T00:00+00:00",
        "2026-12-14T00:00+00:00",
    ]


def test_a_star_in_one_of_them_leaves_the_other_alone() -> None:
    assert fires("0 0 1 * *", UTC, "2026-11-02", "2027-01-02") == ["2026-12-01T00:00+00:00", "2027-01-01T00:00+00:00"]
    assert fires("0 0 * * mon", UTC, "2026-11-24", "2026-12-08") == [
        "2026-11-30T00:00+00:00",
        "2026-12-07T00:00+00:00",
    ]


def test_a_time_that_the_autumn_change_repeats_counts_once() -> None:
    assert fires("30 2 * * *", BERLIN, "2026-10-24T12:00", "2026-10-26T12:00") == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]
    assert fires("30 1 * * *", NEW_YORK, "2026-10-31T12:00", "2026-11-02T12:00") == [
        "2026-11-01T01:30-04:00",
        "2026-11-02T01:30-05:00",
    ]


def test_a_daemon_that_starts_in_the_repeated_hour_waits_for_the_next_day() -> None:
    trigger = Crontab("30 2 * * *", BERLIN)
    second_time = datetime(2026, 10, 25, 1, 15, tzinfo=UTC)  # 02:15 for the second time
    fire = trigger.get_next_fire_time(None, second_time)
    assert fire is not None
    assert fire.isoformat(timespec="minutes") == "2026-10-26T02:30+01:00"


def test_a_time_that_the_spring_change_leaves_out_is_made_up_for_right_after_it() -> None:
    assert fires("30 2 * * *", BERLIN, "2026-03-28T12:00", "2026-03-30T12:00") == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]
    assert fires("0,30 2 * * *", BERLIN, "2026-03-28T12:00", "2026-03-29T12:00") == ["2026-03-29T03:00+02:00"], (
        "both were left out, and are made up for by one pass"
    )


def test_every_quarter_of_an_hour_goes_by_real_time_through_both_changes() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        times = [datetime.fromisoformat(t) for t in fires("*/15 * * * *", BERLIN, f"{day}T00:00", f"{day}T06:00")]
        gaps = {(b - a) for a, b in pairwise(times)}
        assert gaps == {timedelta(minutes=15)}


def test_every_hour_fires_in_the_repeated_hour_as_well() -> None:
    assert fires("0 * * * *", BERLIN, "2026-10-25T01:30", "2026-10-25T04:00") == [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
        "2026-10-25T04:00+01:00",
    ]


def test_a_change_of_half_an_hour_is_a_change() -> None:
    assert fires("15 2 * * *", LORD_HOWE, "2026-10-03T12:00", "2026-10-05T12:00") == [
        "2026-10-04T02:30+11:00",
        "2026-10-05T02:15+11:00",
    ]
    assert fires("45 1 * * *", LORD_HOWE, "2026-04-04T12:00", "2026-04-06T12:00") == [
        "2026-04-05T01:45+11:00",
        "2026-04-06T01:45+10:30",
    ]


def test_a_zone_without_changes_is_left_in_peace() -> None:
    assert fires("30 2 * * *", KOLKATA, "2026-10-24T12:00", "2026-10-26T12:00") == [
        "2026-10-25T02:30+05:30",
        "2026-10-26T02:30+05:30",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("5-50/15 6 * * *", ["06:05", "06:20", "06:35", "06:50"]),
        ("0 9,17 * jan-dec mon-fri", ["09:00", "17:00"]),
        ("*/20 23 * * *", ["23:00", "23:20", "23:40"]),
    ],
)
def test_lists_ranges_steps_and_names_are_read(line: str, expected: list[str]) -> None:
    found = fires(line, UTC, "2026-11-24T00:00", "2026-11-24T23:59")
    assert [moment[11:16] for moment in found] == expected


def test_what_was_missed_while_the_machine_slept_is_one_pass() -> None:
    trigger = Crontab("* * * * *", UTC)
    before, after = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 25, 12, 0, 30, tzinfo=UTC)
    assert trigger.get_next_fire_time(before, after) == datetime(2026, 11, 25, 12, 1, tzinfo=UTC)


def _by_hand(line: str, zone: ZoneInfo, moment: datetime) -> bool:
    """Whether a simple line (numbers and stars) names this minute: crontab(5) read by another hand."""
    minute, hour, day, month, weekday = line.split()
    local = moment.astimezone(zone)

    def fits(field: str, value: int) -> bool:
        return field == "*" or int(field) == value

    is_day = fits(day, local.day)
    is_weekday = fits(weekday, local.isoweekday() % 7)
    is_right_day = (is_day and is_weekday) if "*" in (day, weekday) else (is_day or is_weekday)
    return fits(minute, local.minute) and fits(hour, local.hour) and fits(month, local.month) and is_right_day


@settings(max_examples=150, deadline=None)
@given(
    minute=st.integers(0, 59),
    hour=st.one_of(st.just("*"), st.integers(0, 23)),
    day=st.one_of(st.just("*"), st.integers(1, 31)),
    month=st.one_of(st.just("*"), st.integers(1, 12)),
    weekday=st.one_of(st.just("*"), st.integers(0, 6)),
    start=st.integers(0, 480_000).map(lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)),
)
def test_lines_of_numbers_and_stars_fire_when_they_say_so(
    minute: int, hour: object, day: object, month: object, weekday: object, start: datetime
) -> None:
    line = f"{minute} {hour} {day} {month} {weekday}"
    try:
        trigger = Crontab(line, KOLKATA)
        fire = trigger.get_next_fire_time(None, start)
    except CronSimError:  # the 31st of February
        return
    assert fire is not None
    assert fire > start
    assert _by_hand(line, KOLKATA, fire)
    # Nothing between was left out, as far as two days reach.
    step = start.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while step < min(fire, start + timedelta(days=2)):
        assert not _by_hand(line, KOLKATA, step)
        step += timedelta(minutes=1)


# --- settings -----------------------------------------------------------------------------------------------------


def _schedule(**values: Any) -> config.Schedule:
    given: dict[str, Any] = {"cron": None, "interval": None, "timezone": "UTC", "grace": timedelta(seconds=1)}
    return config.Schedule(**given | values)


def test_an_interval_goes_by_real_time_whatever_the_zone() -> None:
    trigger = trigger_of(_schedule(interval=timedelta(minutes=15), timezone="Europe/Berlin"), BERLIN)
    before = datetime(2026, 10, 25, 0, 50, tzinfo=UTC)
    assert trigger.get_next_fire_time(before, before) - before == timedelta(minutes=15)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("61 * * * *", "minute is none"),
        ("* * * * 8", "day-of-week is none"),
        ("0 0 30 2 *", "day-of-month is none"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@daily", "five fields"),
        ("*/0 * * * *", "minute is none"),
    ],
)
def test_a_cron_line_that_is_none_is_refused_with_the_settings(line: str, said: str) -> None:
    from etl.errors import ConfigError

    with pytest.raises(ConfigError, match="CHECKLY_ETL_SCHEDULE__CRON must be a cron line") as caught:
        config.load(None, {"CHECKLY_ETL_SCHEDULE__CRON": line})
    assert said in str(caught.value)


# --- one pass at a time ---------------------------------------------------------------------------------------------


class Passes:
    """Passes that last as long as the test wants."""

    def __init__(self) -> None:
        self.begun = self.under_way = self.most_at_once = self.skipped = 0
        self.may_end = threading.Event()
        self.lock = threading.Lock()

    def run(self) -> None:
        with self.lock:
            self.begun += 1
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        self.may_end.wait(20)
        with self.lock:
            self.under_way -= 1

    def skip(self) -> None:
        self.skipped += 1


def _running(passes: Passes, run: Callable[[], object] | None = None) -> Schedule:
    every_second = _schedule(interval=timedelta(seconds=1))
    return Schedule(every_second, run_pass=run or passes.run, tick=lambda: None, skipped=passes.skip)


def test_the_first_pass_begins_at_once_and_the_next_wait_for_its_end() -> None:
    passes = Passes()
    with _running(passes):
        wait_until(lambda: passes.begun == 1, timeout=5)
        wait_until(lambda: passes.skipped >= 2, timeout=10)
        assert passes.begun == 1
        passes.may_end.set()
        wait_until(lambda: passes.begun >= 3, timeout=10)
    assert passes.most_at_once == 1
    assert passes.under_way == 0, "the end waits for the pass under way"


def test_a_pass_that_raises_does_not_end_the_schedule() -> None:
    passes = Passes()

    def failing() -> None:
        passes.begun += 1
        raise RuntimeError("a pass that fails")

    with _running(passes, failing):
        wait_until(lambda: passes.begun >= 3, timeout=10)


def test_a_clock_that_was_set_back_does_not_leave_the_next_pass_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes()
    passes.may_end.set()
    hourly = _schedule(interval=timedelta(hours=1))
    with Schedule(hourly, run_pass=passes.run, tick=lambda: None, skipped=passes.skip) as schedule:
        wait_until(lambda: passes.begun == 1, timeout=5)
        schedule.look_at_the_clock()
        assert passes.begun == 1
        monkeypatch.setattr("etl.daemon.schedule.time.time", lambda: 0.0)
        schedule.look_at_the_clock()
        wait_until(lambda: passes.begun == 2, timeout=5)

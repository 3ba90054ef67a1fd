"""Every view says the same as its calculation in `tests.histories`, on both engines: from golden rows written by
hand, and from histories that hypothesis thinks of (CHECKLY_ETL_HISTORIES of them a view and engine).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, text

from etl import schema
from etl.database import Database, now
from etl.normalize import history_key
from etl.tables import check_executions
from tests.conftest import ACCOUNT, rows
from tests.histories import CALCULATIONS, COLUMNS, HISTORIES, KINDS, TODAY, History, Row, id_, moved

WINDOWED = {"v_flaky_checks", "v_error_group_impact", "v_duration_regressions"}  # their rows depend on today
EXAMPLES = int(os.environ.get("CHECKLY_ETL_HISTORIES", "25"))
OTHER = id_(0xA2)
PROJECT = id_(0xB1)
# Sums of doubles depend on their order in the last digits, and no engine promises one. Every summand is a whole
# number of microseconds and there are few: equal sums are equal to the microsecond, unequal ones are not.
SUMS = {
    ("v_test_session_summary", "retry_cost_ms"),
    ("v_check_daily", "retry_cost_ms"),
    ("v_check_daily", "passed_duration_ms_sum"),
}


TYPES: dict[str, Any] = {
    "bool": bool,
    "day": date,
    "time": datetime,
    "id": str,
    "text": str,
    "int": int,
    "float": float,
}


# --- reading views ------------------------------------------------------------------------------------------


def value_of(name: str, value: Any, is_sqlite: bool) -> Any:
    """A value as Python has it. Fails where the view gives another type than the contract says."""
    kind = KINDS[name]
    if value is None:
        return None
    if is_sqlite and kind == "bool":
        assert type(value) is int and value in (0, 1), (name, value)  # noqa: PT018
        return bool(value)
    if is_sqlite and kind == "day":
        return date.fromisoformat(value)
    if is_sqlite and kind == "time":
        assert len(value) == len("2026-11-15 12:00:00.000000"), (name, value)
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    if not is_sqlite and kind == "id":
        assert type(value) is UUID, (name, value)
        return str(value)
    assert type(value) is TYPES[kind], (name, value)
    return value.astimezone(UTC) if kind == "time" else value


def select(connection: Connection, view: str) -> list[Row]:
    """All rows of a view."""
    is_sqlite = connection.dialect.name == "sqlite"
    found = connection.execute(text(f"SELECT * FROM {view}"))
    columns = tuple(found.keys())
    assert columns == COLUMNS[view]
    return [
        {name: value_of(name, value, is_sqlite) for name, value in zip(columns, row, strict=True)} for row in found
    ]


@contextmanager
def holding(database: Database, history: History, time_zone: str = "UTC") -> Iterator[Connection]:
    """A transaction in which the warehouse holds this history and nothing else; it is undone at the end."""
    with database.writing() as connection, connection.begin_nested() as savepoint:
        history.insert(connection)
        if not database.is_sqlite:
            connection.execute(text(f"SET LOCAL timezone TO '{time_zone}'"))
        yield connection
        savepoint.rollback()


def today(database: Database) -> date:
    with database.reading() as connection:
        return now(connection).date()


def seen(database: Database, view: str, history: History, **options: Any) -> tuple[History, date, list[Row]]:
    """The rows of a view, and of which history on which day: where today matters, TODAY is moved to it."""
    while True:
        day = today(database)
        there = history.moved((day - TODAY).days) if view in WINDOWED else history
        with holding(database, there, **options) as connection:
            found = select(connection, view)
        if today(database) == day:
            return there, day, found


def counted(view: str, rows: list[Row]) -> Counter[tuple[tuple[str, Any], ...]]:
    """Rows as a multiset, in which those that are equal can be seen to be. (To Python True is 1, and 1 is 1.0.)"""

    def comparable(name: str, value: Any) -> Any:
        return round(value, 3) if value is not None and (view, name) in SUMS else value

    return Counter(
        tuple((name, f"{type(row[name]).__name__} {comparable(name, row[name])!r}") for name in COLUMNS[view])
        for row in rows
    )


def assert_agreement(database: Database, view: str, history: History, **options: Any) -> None:
    """The view has the rows of its calculation, in any order, each as often."""
    there, day, found = seen(database, view, history, **options)
    of_view, of_calculation = counted(view, found), counted(view, CALCULATIONS[view](there, day))
    missing, unexpected = of_calculation - of_view, of_view - of_calculation
    if missing or unexpected:
        lines = [f"{sign} {dict(row)}" for sign, rows in (("-", missing), ("+", unexpected)) for row in rows]
        pytest.fail("\n".join([f"{view} has not (-) or has besides (+):", *lines, there.described()]))


def skip_unless_written(view: str) -> None:
    if view not in schema.view_texts():
        pytest.skip("not written yet")


# --- histories ----------------------------------------------------------------------------------------------


def test_every_view_of_executions_has_a_calculation_and_every_column_a_kind() -> None:
    assert CALCULATIONS.keys() == COLUMNS.keys()
    assert {name for columns in COLUMNS.values() for name in columns} == KINDS.keys()
    assert schema.public_views().keys() <= COLUMNS.keys() | {"v_freshness"}


@pytest.mark.parametrize("view", CALCULATIONS)
def test_a_view_has_the_rows_of_its_calculation(database: Database, view: str) -> None:
    skip_unless_written(view)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(history=HISTORIES)
    def compare(history: History) -> None:
        assert_agreement(database, view, history)

    compare()


def test_the_histories_reach_what_they_are_for() -> None:
    """Every column of every view takes a value that says something, and the rare things happen."""
    values: dict[tuple[str, str], set[Any]] = {}

    @settings(
        max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(history=HISTORIES)
    def look(history: History) -> None:
        for view, calculation in CALCULATIONS.items():
            for row in calculation(history, TODAY):
                assert row.keys() == set(COLUMNS[view])
                for name, value in row.items():
                    values.setdefault((view, name), set()).add(value)

    look()
    assert values.pop(("v_execution_history", "is_ambiguous")) == {False}
    assert max(values["v_checks", "ambiguous"]) >= 2
    for (view, name), found in values.items():
        assert len(found) > 1, f"{view}.{name} is always {found}"
    assert {name for view, name in values if view == "v_checks"} == set(COLUMNS["v_checks"])
    assert max(values["v_failure_streaks", "failures"]) >= 3
    assert max(values["v_check_daily", "passed_duration_n"]) >= 5
    assert max(values["v_error_group_impact", "checks"]) >= 2
    assert None in values["v_failure_streaks", "recovered_at"]
    assert {None, 0.0} < values["v_flaky_checks", "flip_rate"]
    assert {None, 0.0} < values["v_flaky_checks", "commit_flaky_rate"]
    assert {None, ""} < values["v_check_daily", "branch_name"]


# --- columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", COLUMNS)
def test_a_view_has_the_columns_of_the_contract_in_their_order(database: Database, view: str) -> None:
    skip_unless_written(view)
    with holding(database, History()) as connection:
        assert select(connection, view) == []


POSTGRESQL_TYPES = {
    "id": {"uuid"},
    "text": {"text", "character varying"},
    "day": {"date"},
    "time": {"timestamp with time zone"},
    "int": {"bigint", "integer"},
    "float": {"double precision"},
    "bool": {"boolean"},
}


@pytest.mark.parametrize("view", COLUMNS)
def test_a_column_has_a_type_that_a_bi_tool_expects(database: Database, view: str) -> None:
    skip_unless_written(view)
    if database.is_sqlite:
        pytest.skip("SQLite's columns have no types")
    sql = (
        "SELECT attname, format_type(atttypid, NULL) AS type FROM pg_attribute "
        "WHERE attrelid = CAST(:view AS regclass) AND attnum > 0"
    )
    types = {row["attname"]: row["type"] for row in rows(database, sql, view=view)}
    assert {name: type_ for name, type_ in types.items() if type_ not in POSTGRESQL_TYPES[KINDS[name]]} == {}
    assert types.get("time_to_fix_ms", "bigint") == "bigint"


@pytest.mark.parametrize("view", COLUMNS)
def test_a_reader_in_another_time_zone_sees_the_same_rows(database: Database, view: str) -> None:
    skip_unless_written(view)
    if database.is_sqlite:
        pytest.skip("SQLite has no time zones")
    # At any moment it is another day than in UTC in one of them; and most moments of the history are midnights.
    for time_zone in ("Pacific/Kiritimati", "Pacific/Niue"):
        assert_agreement(database, view, MIDNIGHTS, time_zone=time_zone)


# --- golden rows: histories and what the views say of them, written by hand ---------------------------------


def at(days: int, clock: str = "12:00") -> datetime:
    """A time of the day that is so many days after TODAY."""
    return datetime.fromisoformat(f"{TODAY + timedelta(days=days)}T{clock}+00:00")


def session(number: int, **more: Any) -> Row:
    return {
        "test_session_id": id_(number),
        "account_id": ACCOUNT,
        "status": "PASSED",
        "is_final": True,
        "started_at": at(0),
        "first_exported_at": at(0),
        "exported_at": at(0),
        "payload_sha256": "",
        **more,
    }


def execution(number: int, execution_no: int, verdict: str | None = "PASSED", **more: Any) -> Row:
    """An execution of the check `key`; undecided it was cancelled."""
    row = {
        "test_session_id": id_(number),
        "execution_no": execution_no,
        "check_key": "key",
        "grouped_by": "inferred",
        "test_session_result_id": id_(1000 + execution_no),
        "check_name": "check",
        "check_type": "API",
        "run_location": None,
        "status": verdict or "CANCELLED",
        "verdict": verdict,
        "retries": 0,
        "is_retry_flaky": False,
        "started_at": at(0),
        "is_ambiguous": False,
        "retry_cost_ms": 0.0,
        "account_id": ACCOUNT,
        "environment": None,
        "branch_name": None,
        "commit_id": None,
        **more,
    }
    place = [row[name] for name in ("account_id", "check_key", "branch_name", "environment", "run_location")]
    return {"history_key": history_key(*place), **row}


def runs(*executions: Row) -> History:
    """A history of executions, each of a test session of its own number."""
    nulls: Row = dict.fromkeys(check_executions.columns.keys())
    complete = [nulls | row for row in executions]
    ids = sorted({row["test_session_id"] for row in complete})
    return History(test_sessions=[session(0) | {"test_session_id": id_} for id_ in ids], check_executions=complete)


def table(columns: str, *lines: tuple[Any, ...]) -> list[Row]:
    """Rows: the names of the columns, and then the values, a line a row."""
    return [dict(zip(columns.split(), line, strict=True)) for line in lines]


def agree(database: Database, view: str, history: History, expected: list[Row]) -> None:
    """The calculation and the view both have these rows; of a row that names few columns, in these."""

    def comparable(rows: list[Row]) -> list[Row]:
        return sorted(({name: row[name] for name in expected[0]} for row in rows), key=repr)

    assert comparable(CALCULATIONS[view](history, TODAY)) == comparable(expected)
    skip_unless_written(view)
    _, day, found = seen(database, view, history)
    assert comparable(moved(found, (TODAY - day).days if view in WINDOWED else 0)) == comparable(expected)


MIDNIGHTS = runs(
    *(
        execution(
            100 + days,
            1 + number,
            verdict,
            started_at=at(days, clock),
            commit_id="c",
            duration_ms=float(100 + days),
        )
        for days in range(-31, 2)
        for number, (clock, verdict) in enumerate((("00:00", "PASSED"), ("23:59:59.999999", "FAILED")))
    )
)


def test_a_session_is_summed_up(database: Database) -> None:
    executions = runs(
        execution(1, 1, retries=1, is_retry_flaky=True, retry_cost_ms=0.5, is_degraded=True),
        execution(1, 2, is_degraded=False),
        execution(1, 3, "FAILED", has_errors=True),
        execution(1, 4, None, is_degraded=True, retries=2, retry_cost_ms=0.25),
    ).check_executions
    history = History(
        test_sessions=[
            session(
                1,
                project_id=PROJECT,
                name="nightly",
                provider="GITHUB",
                status="CANCELLED",
                environment="",
                branch_name="main",
                commit_id="c0ffee",
                started_at=at(0, "12:00:00.000500"),
                stopped_at=at(0, "12:00:01.000001"),
                link="https://app.checklyhq.com/1",
            ),
            session(2, status="RUNNING"),
        ],
        check_executions=executions,
        error_groups=[{"error_group_id": id_(5)}, {"error_group_id": id_(6)}],
        test_session_error_groups=[
            {"test_session_id": id_(1), "error_group_id": id_(5)},
            {"test_session_id": id_(1), "error_group_id": id_(6)},
        ],
    )
    expected: list[Row] = [
        {
            "test_session_id": id_(1),
            "account_id": ACCOUNT,
            "project_id": PROJECT,
            "name": "nightly",
            "provider": "GITHUB",
            "status": "CANCELLED",
            "environment": "",
            "branch_name": "main",
            "commit_id": "c0ffee",
            "started_at": at(0, "12:00:00.000500"),
            "link": "https://app.checklyhq.com/1",
            "executions": 4,
            "passed": 2,
            "failed": 1,
            "undecided": 1,
            "retry_flaky": 1,
            "degraded": 1,
            "retries": 3,
            "error_groups": 2,
            "retry_cost_ms": 0.75,
            "duration_ms": 999.501,
            "pass_rate": 2 / 3,
            "verdict": "FAILED",
        },
        {
            "test_session_id": id_(2),
            "account_id": ACCOUNT,
            "project_id": None,
            "name": None,
            "provider": None,
            "status": "RUNNING",
            "environment": None,
            "branch_name": None,
            "commit_id": None,
            "started_at": at(0),
            "link": None,
            "executions": 0,
            "passed": 0,
            "failed": 0,
            "undecided": 0,
            "retry_flaky": 0,
            "degraded": 0,
            "retries": 0,
            "error_groups": 0,
            "retry_cost_ms": 0.0,
            "duration_ms": None,
            "pass_rate": None,
            "verdict": "RUNNING",
        },
    ]
    agree(database, "v_test_session_summary", history, expected)


def test_a_check_has_the_names_of_its_newest_execution(database: Database) -> None:
    history = runs(
        execution(1, 1, check_id=id_(0xC1), project_id=PROJECT, verdict="FAILED", started_at=at(-2)),
        execution(2, 1, None, check_name="renamed", check_type="BROWSER", started_at=at(-1)),
        execution(3, 1, None, account_id=None, started_at=at(-3)),
    )
    expected = table(
        "account_id check_key check_id check_name check_type project_id first_started_at last_started_at "
        "last_verdict",
        (ACCOUNT, "key", None, "renamed", "BROWSER", PROJECT, at(-2), at(-1), "FAILED"),
        (None, "key", None, "check", "API", None, at(-3), at(-3), None),
    )
    agree(database, "v_checks", history, expected)


# --- v_check_daily ---


def test_a_day_of_a_check_is_summed_up(database: Database) -> None:
    flaky: Row = {"retries": 1, "is_retry_flaky": True, "retry_cost_ms": 12.5}
    history = runs(
        execution(1, 1, duration_ms=100.0, is_degraded=True, **flaky),
        execution(1, 2, duration_ms=300.5, project_id=PROJECT),
        execution(1, 3, duration_ms=None),
        execution(2, 1, "FAILED", duration_ms=9999.0, has_errors=True, retries=1, retry_cost_ms=4.0),
        execution(2, 2, "FAILED", is_degraded=True),
        execution(2, 3, None, is_degraded=True, has_errors=True, retries=1, retry_cost_ms=0.25),
        # Another day, later: it names the check everywhere. Nothing was decided.
        execution(3, 1, None, started_at=at(1), check_name="renamed", check_type="BROWSER", duration_ms=7.0),
    )
    columns = (
        "day account_id check_key branch_name environment run_location check_name check_type project_id executions "
        "decided passed failed errored retry_flaky degraded pass_rate retry_flaky_rate retry_cost_ms "
        "passed_duration_ms_sum passed_duration_n p50_duration_ms p95_duration_ms"
    )
    renamed = (ACCOUNT, "key", None, None, None, "renamed", "BROWSER", PROJECT)
    expected = table(
        columns,
        (TODAY, *renamed, 6, 5, 3, 2, 1, 1, 2, 3 / 5, 1 / 5, 16.75, 400.5, 2, 100.0, 300.5),
        (at(1).date(), *renamed, 1, 0, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0, None, None),
    )
    agree(database, "v_check_daily", history, expected)


def test_days_are_those_of_utc_and_null_is_not_empty(database: Database) -> None:
    history = runs(
        execution(1, 1, started_at=at(0, "00:00")),
        execution(1, 2, started_at=at(0, "23:59:59.999999")),
        execution(1, 3, started_at=at(-1, "23:59:59.999999")),
        execution(2, 1, branch_name=""),
        execution(2, 2, environment=""),
        execution(2, 3, run_location=""),
        execution(2, 4, account_id=None),
        execution(2, 5, account_id=OTHER),
        execution(2, 6, check_key="another"),
    )
    expected = table(
        "day account_id check_key branch_name environment run_location executions",
        (TODAY, ACCOUNT, "key", None, None, None, 2),
        (at(-1).date(), ACCOUNT, "key", None, None, None, 1),
        (TODAY, ACCOUNT, "key", "", None, None, 1),
        (TODAY, ACCOUNT, "key", None, "", None, 1),
        (TODAY, ACCOUNT, "key", None, None, "", 1),
        (TODAY, None, "key", None, None, None, 1),
        (TODAY, OTHER, "key", None, None, None, 1),
        (TODAY, ACCOUNT, "another", None, None, None, 1),
    )
    agree(database, "v_check_daily", history, expected)


@pytest.mark.parametrize(
    ("n", "p50", "p95"),
    [
        (1, 1, 1),
        (2, 1, 2),
        (3, 2, 3),
        (4, 2, 4),
        (19, 10, 19),
        (20, 10, 19),
        (21, 11, 20),
        (100, 50, 95),
        (101, 51, 96),
    ],
)
def test_a_percentile_is_a_duration_that_was_measured(database: Database, n: int, p50: int, p95: int) -> None:
    durations = sorted(range(1, n + 1), key=lambda number: number * 37 % 101)  # from 1 to n, in disorder
    history = runs(
        *(execution(1, number, duration_ms=float(duration)) for number, duration in enumerate(durations, 1)),
        execution(2, 1, duration_ms=None),
        execution(2, 2, "FAILED", duration_ms=0.0),
    )
    expected = table("passed_duration_n p50_duration_ms p95_duration_ms", (n, float(p50), float(p95)))
    agree(database, "v_check_daily", history, expected)
    agree(database, "v_duration_regressions", history, table("recent_n recent_p95_duration_ms", (n, float(p95))))


# --- v_execution_history, v_failure_streaks ---

SHARP = at(-7, "12:00:00.999500")
STORY = runs(
    execution(9, 1, "FAILED", started_at=at(-9), commit_id="a", link="1"),
    execution(8, 1, "PASSED", started_at=at(-8), commit_id="b"),
    execution(7, 1, "FAILED", started_at=SHARP, commit_id="c"),
    execution(6, 1, None, started_at=at(-6), commit_id="d", check_name="between"),
    execution(5, 1, "FAILED", started_at=at(-5), commit_id=None, link="2"),
    execution(4, 1, "PASSED", started_at=at(-4, "12:00:01"), commit_id="e"),
    execution(3, 1, "PASSED", started_at=at(-3), commit_id="f"),
    # Of one moment: by session, then by number, in which 10 comes after 9.
    execution(0xA, 10, "FAILED", started_at=at(-2), commit_id="i", link="3"),
    execution(0xA, 9, "PASSED", started_at=at(-2), commit_id="h"),
    execution(0x9, 11, "FAILED", started_at=at(-2), commit_id="g"),
    # Histories of their own, one failure each.
    execution(1, 1, "FAILED", branch_name="", link="4"),
    execution(1, 2, "FAILED", environment="", link=None),
    execution(1, 3, "FAILED", run_location="eu", link="6"),
    execution(1, 4, "FAILED", account_id=None, link="7"),
    execution(1, 5, None, branch_name="undecided", check_name="newest", check_type="TCP"),
)


def test_a_decided_execution_knows_the_one_before_it(database: Database) -> None:
    expected = table(
        "started_at test_session_id execution_no status previous_status previous_started_at previous_commit_id "
        "is_flip is_new_failure",
        (at(-9), id_(9), 1, "FAILED", None, None, None, False, False),
        (at(-8), id_(8), 1, "PASSED", "FAILED", at(-9), "a", True, False),
        (SHARP, id_(7), 1, "FAILED", "PASSED", at(-8), "b", True, True),
        (at(-5), id_(5), 1, "FAILED", "FAILED", SHARP, "c", False, False),
        (at(-4, "12:00:01"), id_(4), 1, "PASSED", "FAILED", at(-5), None, True, False),
        (at(-3), id_(3), 1, "PASSED", "PASSED", at(-4, "12:00:01"), "e", False, False),
        (at(-2), id_(0x9), 11, "FAILED", "PASSED", at(-3), "f", True, True),
        (at(-2), id_(0xA), 9, "PASSED", "FAILED", at(-2), "g", True, False),
        (at(-2), id_(0xA), 10, "FAILED", "PASSED", at(-2), "h", True, True),
        *((at(0), id_(1), number, "FAILED", None, None, None, False, False) for number in (1, 2, 3, 4)),
    )
    agree(database, "v_execution_history", STORY, expected)


def test_an_execution_is_told_with_all_its_columns(database: Database) -> None:
    one: Row = {
        "test_session_id": id_(1),
        "execution_no": 3,
        "check_key": "key",
        "history_key": "0" * 64,
        "grouped_by": "sequence",
        "test_session_result_id": id_(4),
        "link": "https://app.checklyhq.com/4",
        "check_id": id_(5),
        "check_name": "login",
        "check_type": "BROWSER",
        "run_location": "eu-west-1",
        "status": "PASSED",
        "verdict": "PASSED",
        "retries": 2,
        "is_retry_flaky": True,
        "is_degraded": False,
        "has_errors": None,
        "started_at": at(0, "12:00:00.000001"),
        "stopped_at": at(0, "12:00:00.000002"),
        "is_ambiguous": False,
        "duration_ms": 0.001,
        "retry_cost_ms": 0.1,
        "account_id": OTHER,
        "project_id": PROJECT,
        "environment": "production",
        "branch_name": "main",
        "commit_id": "c0ffee",
    }
    previous: Row = {
        "previous_status": None,
        "previous_started_at": None,
        "previous_commit_id": None,
        "is_flip": False,
        "is_new_failure": False,
    }
    agree(database, "v_execution_history", runs(one), [one | previous])


def test_a_streak_lasts_until_the_next_pass(database: Database) -> None:
    day = 86_400_000
    ours = (ACCOUNT, "key", None, None, None, "newest", "TCP")
    others = (at(0), at(0), None, 1, None, id_(1), None, None, None)
    expected = table(
        "account_id check_key branch_name environment run_location check_name check_type first_failed_at "
        "last_failed_at recovered_at failures time_to_fix_ms first_failed_test_session_id first_failed_commit_id "
        "recovered_test_session_id recovered_commit_id link",
        (*ours, at(-9), at(-9), at(-8), 1, day, id_(9), "a", id_(8), "b", "1"),
        # What is undecided does not end it. Each of the two moments is floored: 12:00:00.999 to 12:00:01.000.
        (*ours, SHARP, at(-5), at(-4, "12:00:01"), 2, 3 * day + 1, id_(7), "c", id_(4), "e", "2"),
        (*ours, at(-2), at(-2), at(-2), 1, 0, id_(9), "g", id_(0xA), "h", None),
        (*ours, at(-2), at(-2), None, 1, None, id_(0xA), "i", None, None, "3"),
        (ACCOUNT, "key", "", None, None, "newest", "TCP", *others, "4"),
        (ACCOUNT, "key", None, "", None, "newest", "TCP", *others, None),
        (ACCOUNT, "key", None, None, "eu", "newest", "TCP", *others, "6"),
        (None, "key", None, None, None, "check", "API", *others, "7"),
    )
    agree(database, "v_failure_streaks", STORY, expected)


@pytest.mark.parametrize(
    ("first_failed", "recovered", "expected"),
    [
        ("2026-11-15T12:00:00.000999", "2026-11-15T12:00:00.001000", 1),
        ("2026-11-15T12:00:00.000001", "2026-11-15T12:00:00.001999", 1),
        ("2026-11-15T12:00:00.000999", "2026-11-15T12:00:01.000000", 1000),
        ("2026-11-15T12:00:00.999500", "2026-11-15T12:00:00.999999", 0),
        ("2026-11-15T12:00:00.999500", "2026-11-15T12:00:01.000499", 1),
        # Before 1970, too, floored means earlier.
        ("1969-12-31T23:59:59.999500", "1970-01-01T00:00:00.000500", 1),
        ("1969-12-31T23:59:59.999001", "1969-12-31T23:59:59.999999", 0),
    ],
)
def test_a_time_to_fix_is_counted_in_whole_milliseconds(
    database: Database, first_failed: str, recovered: str, expected: int
) -> None:
    history = runs(
        execution(1, 1, "FAILED", started_at=datetime.fromisoformat(first_failed + "+00:00")),
        execution(2, 1, "PASSED", started_at=datetime.fromisoformat(recovered + "+00:00")),
    )
    agree(database, "v_failure_streaks", history, table("failures time_to_fix_ms", (1, expected)))


# --- v_commit_flakiness, v_flaky_checks ---


def test_a_commit_is_flaky_where_it_passed_and_failed_in_one_place(database: Database) -> None:
    history = runs(
        # Twice in one place, on two branches: flaky there, and there only.
        execution(1, 1, "PASSED", commit_id="a", branch_name="main", started_at=at(-3)),
        execution(1, 2, "FAILED", commit_id="a", branch_name="next", started_at=at(-2)),
        execution(1, 3, "FAILED", commit_id="a", environment="", started_at=at(-1)),
        execution(1, 4, "FAILED", commit_id="a", run_location="eu", started_at=at(-1)),
        # One commit, two places: in none of them both.
        execution(2, 1, "PASSED", commit_id="b", environment="production"),
        execution(2, 2, "FAILED", commit_id="b", environment="staging"),
        # A pass that needed a retry is a pass.
        execution(3, 1, "PASSED", commit_id="c", is_retry_flaky=True, retries=1),
        execution(3, 2, "PASSED", commit_id="c"),
        execution(3, 3, None, commit_id="c", check_name="renamed", started_at=at(1)),
        # Without a commit there is none to be flaky.
        execution(4, 1, "PASSED", commit_id=None),
        execution(4, 2, "FAILED", commit_id=None),
        execution(5, 1, "FAILED", commit_id="a", account_id=None),
    )
    expected = table(
        "account_id check_key environment run_location commit_id check_name check_type passed failed is_commit_flaky "
        "first_started_at",
        (ACCOUNT, "key", None, None, "a", "renamed", "API", 1, 1, True, at(-3)),
        (ACCOUNT, "key", "", None, "a", "renamed", "API", 0, 1, False, at(-1)),
        (ACCOUNT, "key", None, "eu", "a", "renamed", "API", 0, 1, False, at(-1)),
        (ACCOUNT, "key", "production", None, "b", "renamed", "API", 1, 0, False, at(0)),
        (ACCOUNT, "key", "staging", None, "b", "renamed", "API", 0, 1, False, at(0)),
        (ACCOUNT, "key", None, None, "c", "renamed", "API", 2, 0, False, at(0)),
        (None, "key", None, None, "a", "check", "API", 0, 1, False, at(0)),
    )
    agree(database, "v_commit_flakiness", history, expected)


def test_a_commit_lasts_from_its_first_to_its_last_execution(database: Database) -> None:
    history = runs(
        execution(1, 1, "PASSED", commit_id="a", started_at=at(-5, "00:00")),
        execution(1, 2, "PASSED", commit_id="a", started_at=at(-5, "00:00:00.000001")),
        execution(1, 3, "FAILED", commit_id="a", started_at=at(-4)),
    )
    expected = table(
        "commit_id passed failed is_commit_flaky first_started_at last_started_at",
        ("a", 2, 1, True, at(-5, "00:00"), at(-4)),
    )
    agree(database, "v_commit_flakiness", history, expected)


FLAKY = (
    "account_id check_key check_name check_type executions decided retry_flaky retry_flaky_rate commits commit_flaky "
    "commit_flaky_rate comparable flips flip_rate"
)


def test_a_check_is_flaky_in_three_ways(database: Database) -> None:
    history = runs(
        execution(1, 1, "PASSED", started_at=at(-6), commit_id="a"),
        execution(1, 2, "FAILED", started_at=at(-5), commit_id="a"),
        execution(1, 3, "PASSED", started_at=at(-4), commit_id="b", is_retry_flaky=True, retries=1),
        execution(1, 4, "PASSED", started_at=at(-3), commit_id="b"),
        # Twice, but in two places: no sample. Neither is one try, nor one that nobody decided.
        execution(1, 5, "PASSED", started_at=at(-2), commit_id="c"),
        execution(1, 6, "FAILED", started_at=at(-2), commit_id="c", environment="staging"),
        execution(1, 7, None, started_at=at(-2), commit_id="c"),
        execution(1, 8, "PASSED", started_at=at(-1), commit_id=None),
        execution(1, 9, "FAILED", started_at=at(0), commit_id=None, check_name="renamed"),
        # Nothing decided, nothing known.
        execution(2, 1, None, check_key="undecided", commit_id="a"),
        execution(2, 2, None, check_key="undecided", commit_id="a"),
        # Decided once: nothing to compare it with.
        execution(3, 1, "FAILED", account_id=None, commit_id="a"),
    )
    expected = table(
        FLAKY,
        # In the history without an environment: P F P P P P F, six with one before them.
        (ACCOUNT, "key", "renamed", "API", 9, 8, 1, 1 / 8, 2, 1, 1 / 2, 6, 3, 3 / 6),
        (ACCOUNT, "undecided", "check", "API", 2, 0, 0, None, 0, 0, None, 0, 0, None),
        (None, "key", "check", "API", 1, 1, 0, 0.0, 0, 0, None, 0, 0, None),
    )
    agree(database, "v_flaky_checks", history, expected)


def test_a_commit_counts_once_in_however_many_places_it_is_flaky(database: Database) -> None:
    history = runs(
        execution(1, 1, "PASSED", commit_id="a", environment="production"),
        execution(1, 2, "FAILED", commit_id="a", environment="production"),
        execution(1, 3, "PASSED", commit_id="a", environment="staging"),
        execution(1, 4, "FAILED", commit_id="a", environment="staging"),
        execution(1, 5, "PASSED", commit_id="a", run_location="eu"),
        execution(1, 6, "PASSED", commit_id="a", run_location="eu"),
        # A place is no branch: two branches of one commit are two tries.
        execution(2, 1, "PASSED", commit_id="b", branch_name="main"),
        execution(2, 2, "FAILED", commit_id="b", branch_name="next"),
        # Null, '' and a name are three locations, and three environments.
        execution(3, 1, "PASSED", commit_id="c", run_location=""),
        execution(3, 2, "FAILED", commit_id="c", run_location="eu"),
        execution(3, 3, "FAILED", commit_id="c", run_location=None, environment=""),
    )
    # Compared are the second of production, the second of staging, and two of the three of "eu".
    expected = table("commits commit_flaky commit_flaky_rate comparable flips", (2, 2, 1.0, 4, 3))
    agree(database, "v_flaky_checks", history, expected)


def test_the_last_thirty_days_begin_at_midnight_of_the_twenty_ninth_day_before(database: Database) -> None:
    history = runs(
        # Before the window: not counted, but what comes next is compared with it.
        execution(1, 1, "FAILED", started_at=at(-30, "23:59:59.999999"), commit_id="a"),
        execution(2, 1, "PASSED", started_at=at(-29, "00:00"), commit_id="a"),
        execution(3, 1, "FAILED", started_at=at(0, "23:59:59.999999"), commit_id="b"),
        # After it.
        execution(4, 1, "PASSED", started_at=at(1, "00:00"), commit_id="b", check_name="newest"),
        # A check that did not run in it is not in the view.
        execution(5, 1, "FAILED", started_at=at(-30), check_key="gone"),
        execution(5, 2, "FAILED", started_at=at(1), check_key="to come"),
    )
    expected = table(FLAKY, (ACCOUNT, "key", "newest", "API", 2, 2, 0, 0.0, 0, 0, None, 2, 2, 1.0))
    agree(database, "v_flaky_checks", history, expected)


# --- v_error_occurrences, v_error_group_impact ---


def result(number: int, position: int, execution_no: int | None, **more: Any) -> Row:
    return {
        "test_session_id": id_(number),
        "test_session_result_id": id_(100 + position),
        "position": position,
        "execution_no": execution_no,
        "check_name": "check",
        "result_type": "FINAL",
        "status": "FAILED",
        **more,
    }


def link(number: int, position: int, error_group: int) -> Row:
    return {
        "test_session_id": id_(number),
        "test_session_result_id": id_(100 + position),
        "error_group_id": id_(error_group),
    }


def errors(results: list[Row], links: list[Row], groups: list[Row]) -> History:
    """A history in which the session 1 passed its execution 1 of the check `key`."""
    history = runs(execution(1, 1))
    history.test_sessions = [session(1, branch_name="main", environment="", commit_id="c0ffee")]
    history.test_session_results = results
    history.test_session_result_error_groups = links
    history.error_groups = groups
    return history


def test_an_error_occurs_once_a_result_and_group(database: Database) -> None:
    history = errors(
        [
            result(1, 1, 1, result_type="ATTEMPT", run_location="eu", started_at=at(-1), check_name="old name"),
            result(1, 2, 1, started_at=None),
            result(1, 3, None, result_type="PENDING", check_name=None),
            result(1, 4, 1),  # without an error
        ],
        [link(1, 1, 5), link(1, 1, 6), link(1, 2, 5), link(1, 3, 5)],
        [
            {"error_group_id": id_(5), "cleaned_error_message": "timeout", "account_id": OTHER},
            {"error_group_id": id_(6)},  # known by id only
        ],
    )
    first, second, third = ((id_(1), id_(100 + position)) for position in (1, 2, 3))
    ours = ("main", "")
    expected = table(
        "test_session_id test_session_result_id error_group_id cleaned_error_message account_id check_key check_name "
        "branch_name environment run_location commit_id started_at result_type verdict",
        (*first, id_(5), "timeout", ACCOUNT, "key", "old name", *ours, "eu", "c0ffee", at(-1), "ATTEMPT", "PASSED"),
        (*first, id_(6), None, ACCOUNT, "key", "old name", *ours, "eu", "c0ffee", at(-1), "ATTEMPT", "PASSED"),
        (*second, id_(5), "timeout", ACCOUNT, "key", "check", *ours, None, "c0ffee", at(0), "FINAL", "PASSED"),
        (*third, id_(5), "timeout", ACCOUNT, None, None, *ours, None, "c0ffee", at(0), "PENDING", None),
    )
    agree(database, "v_error_occurrences", history, expected)


def test_an_error_groups_impact_is_summed_up(database: Database) -> None:
    history = runs(
        execution(1, 1, "FAILED"),
        execution(1, 2, "FAILED", check_key="another"),
        execution(2, 1, "FAILED"),
        execution(3, 1, "FAILED"),
    )
    history.test_sessions = [
        session(1, branch_name="main", environment="production"),
        session(2, branch_name="main", environment="", started_at=at(-6, "00:00")),
        session(3, branch_name=None, environment=None),
        session(4, branch_name="next", environment="staging"),
    ]
    history.test_session_results = [
        result(1, 1, 1, result_type="ATTEMPT", started_at=at(-1)),
        result(1, 2, 1, started_at=at(0, "23:59:59.999999")),
        result(1, 3, 2, started_at=at(-7, "23:59:59.999999")),
        result(2, 1, 1),
        result(3, 1, 1, started_at=at(1, "00:00")),
        result(3, 2, None, started_at=at(-40)),
    ]
    history.test_session_result_error_groups = [
        *(link(1, position, 5) for position in (1, 2, 3)),
        link(2, 1, 5),
        link(3, 1, 5),
        link(3, 2, 5),
        link(1, 1, 6),
    ]
    history.error_groups = [
        {
            "error_group_id": id_(5),
            "account_id": OTHER,
            "cleaned_error_message": "timeout",
            "first_seen": at(-50),
            "last_seen": at(-1, "12:00:00.000001"),
        },
        {"error_group_id": id_(6)},
        {"error_group_id": id_(7), "first_seen": at(0)},
    ]
    # In a session, but in none of its results: no occurrence.
    history.test_session_error_groups = [{"test_session_id": id_(4), "error_group_id": id_(7)}]
    seen_at = (at(-40), at(1, "00:00"), at(-50), at(-1, "12:00:00.000001"))
    expected = table(
        "error_group_id account_id cleaned_error_message occurrences test_sessions checks branches environments "
        "first_observed_at last_observed_at first_seen last_seen occurrences_7d is_new is_regression",
        # Of six occurrences three lie in the window. Which check a result without an execution is of, nobody knows.
        (id_(5), OTHER, "timeout", 6, 3, 2, 1, 2, *seen_at, 3, False, False),
        (id_(6), None, None, 1, 1, 1, 1, 1, at(-1), at(-1), None, None, 1, True, False),
        (id_(7), None, None, 0, 0, 0, 0, 0, None, None, at(0), None, 0, False, False),
    )
    agree(database, "v_error_group_impact", history, expected)


@pytest.mark.parametrize(
    ("occurred", "is_new", "is_regression"),
    [
        ((at(0),), True, False),
        ((at(-6, "00:00"),), True, False),
        ((at(-7, "23:59:59.999999"),), False, False),
        ((at(1, "00:00"),), False, False),
        ((), False, False),
        # Seven days without, to the hour; and two hours less.
        ((at(-9), at(-1)), False, True),
        ((at(-8), at(-1)), False, True),
        ((at(-8, "23:00"), at(-1, "21:00")), False, False),
        ((at(-7), at(-1)), False, False),
        ((at(-40), at(-6, "00:00")), False, True),
        # What was seen between counts.
        ((at(-40), at(-7), at(-1)), False, False),
        ((at(-9), at(-7), at(-1)), False, False),
        # It came back after five days, and has stayed.
        ((at(-8), at(-2), at(0)), False, False),
        # Seen again today as well, or last in the future: the days without have been all the same.
        ((at(-9), at(-1), at(0), at(1)), False, True),
        # Not seen in the last 7 days.
        ((at(-20), at(-8)), False, False),
        ((at(-20), at(1)), False, False),
        ((at(-20), at(-7, "23:59:59.999999")), False, False),
        # New, however it comes and goes.
        ((at(-6), at(0)), True, False),
    ],
)
def test_an_error_is_new_or_comes_back(
    database: Database, occurred: tuple[datetime, ...], is_new: bool, is_regression: bool
) -> None:
    history = errors(
        [result(1, position, 1, started_at=moment) for position, moment in enumerate(occurred, 1)],
        [link(1, position, 5) for position in range(1, len(occurred) + 1)],
        [{"error_group_id": id_(5)}],
    )
    agree(database, "v_error_group_impact", history, table("is_new is_regression", (is_new, is_regression)))


# --- v_duration_regressions ---


def test_a_check_has_become_slow(database: Database) -> None:
    durations = {
        # Baseline: the days -13 to -7, both to their ends. All branches of a day together.
        at(-14, "23:59:59.999999"): 9000.0,
        at(-13, "00:00"): 200.0,
        at(-10, "00:00"): 100.0,
        at(-10, "23:59:59.999999"): 300.0,
        at(-7, "23:59:59.999999"): 250.0,
        # Recent: the days -6 to 0.
        at(-6, "00:00"): 450.0,
        at(0, "23:59:59.999999"): 400.0,
        at(1, "00:00"): 9000.0,
    }
    history = runs(
        *(
            execution(1, number, started_at=moment, duration_ms=duration, branch_name=f"branch {number}")
            for number, (moment, duration) in enumerate(durations.items(), 1)
        ),
        execution(2, 1, started_at=at(-12), duration_ms=None),
        execution(2, 2, "FAILED", started_at=at(-11), duration_ms=9000.0),
        execution(2, 3, None, started_at=at(-1), duration_ms=9000.0),
        execution(2, 4, started_at=at(2), check_name="renamed", check_type="TCP"),
        # Places of their own.
        execution(3, 1, started_at=at(-1), duration_ms=7.0, environment=""),
        execution(3, 2, started_at=at(-8), duration_ms=8.0, run_location="eu"),
        execution(3, 3, started_at=at(-1), duration_ms=7.0, account_id=None),
        execution(3, 4, started_at=at(-9), duration_ms=0.0, account_id=None),
    )
    expected = table(
        "account_id check_key environment run_location check_name check_type recent_p95_duration_ms "
        "baseline_p95_duration_ms recent_n baseline_n baseline_days ratio",
        (ACCOUNT, "key", None, None, "renamed", "TCP", 450.0, 300.0, 2, 4, 3, 1.5),
        (ACCOUNT, "key", "", None, "renamed", "TCP", 7.0, None, 1, 0, 0, None),
        (ACCOUNT, "key", None, "eu", "renamed", "TCP", None, 8.0, 0, 1, 1, None),
        (None, "key", None, None, "check", "API", 7.0, 0.0, 1, 1, 1, None),
    )
    agree(database, "v_duration_regressions", history, expected)


def test_a_baseline_is_the_highest_p95_of_one_day_and_not_of_all_days(database: Database) -> None:
    # Of 20 the 19th: on the first day 100. Of the 50 of both days it would be the 48th: 20.
    history = runs(
        *(execution(1, number, started_at=at(-8), duration_ms=10.0) for number in range(1, 19)),
        *(execution(1, number, started_at=at(-8), duration_ms=100.0) for number in (19, 20)),
        *(execution(2, number, started_at=at(-9), duration_ms=20.0) for number in range(1, 31)),
        # All recent days are one: of 40 the 38th.
        *(execution(3, number, started_at=at(0), duration_ms=30.0) for number in range(1, 20)),
        execution(3, 20, started_at=at(0), duration_ms=5000.0),
        *(execution(4, number, started_at=at(-1), duration_ms=50.0) for number in range(1, 21)),
    )
    expected = table(
        "recent_p95_duration_ms baseline_p95_duration_ms recent_n baseline_n baseline_days ratio",
        (50.0, 100.0, 40, 50, 2, 0.5),
    )
    agree(database, "v_duration_regressions", history, expected)

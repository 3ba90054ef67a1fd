"""The views say what design §5 says, from golden rows, the same on both engines."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from etl import schema
from etl.database import Database, now
from etl.tables import (
    check_executions,
    error_groups,
    etl_accounts,
    etl_queue,
    test_session_error_groups,
    test_sessions,
)
from etl.words import WrongWord, in_dialect
from tests.conftest import ACCOUNT, rows, scalar

OTHER = "44444444-4444-4444-8444-444444444444"
START = datetime(2026, 11, 1, 12, tzinfo=UTC)
COLUMNS = {
    "v_test_session_summary": (
        "test_session_id account_id project_id name provider status environment branch_name commit_id started_at "
        "link executions passed failed undecided retry_flaky degraded retries error_groups retry_cost_ms duration_ms "
        "pass_rate verdict"
    ),
    "v_checks": (
        "account_id check_key check_id check_name check_type project_id first_started_at last_started_at "
        "last_verdict ambiguous"
    ),
    "v_freshness": (
        "account_id last_success_at newest_started_at due scheduled leased dead oldest_due_at hours_until_loss"
    ),
}


def id_(number: int) -> str:
    return str(UUID(int=number))


def session(connection: Connection, number: int, **more: Any) -> str:
    values = {
        "test_session_id": id_(number),
        "account_id": ACCOUNT,
        "status": "PASSED",
        "is_final": True,
        "started_at": START,
        "first_exported_at": START,
        "exported_at": START,
        "payload_sha256": "",
        **more,
    }
    connection.execute(test_sessions.insert().values(**values))
    return id_(number)


def execution(connection: Connection, number: int, execution_no: int, **more: Any) -> None:
    values = {
        "test_session_id": id_(number),
        "execution_no": execution_no,
        "check_key": "key",
        "history_key": "h",
        "grouped_by": "inferred",
        "test_session_result_id": id_(1000 + execution_no),
        "check_name": "check",
        "check_type": "API",
        "status": "PASSED",
        "verdict": "PASSED",
        "retries": 0,
        "is_retry_flaky": False,
        "is_degraded": False,
        "started_at": START,
        "retry_cost_ms": 0.0,
        "account_id": ACCOUNT,
        **more,
    }
    connection.execute(check_executions.insert().values(**values))


def one(found: list[dict[str, Any]]) -> dict[str, Any]:
    (row,) = found
    return row


@pytest.mark.parametrize("view", COLUMNS)
def test_a_view_has_the_columns_that_are_promised_in_their_order(database: Database, view: str) -> None:
    with database.reading() as connection:
        found = list(connection.execute(text(f"SELECT * FROM {view}")).keys())
    assert found == COLUMNS[view].split()


def test_every_view_begins_with_its_grain() -> None:
    for source in schema.view_texts().values():
        assert source.startswith("-- One row a"), source[:60]


def test_views_are_read_where_there_is_nothing(database: Database) -> None:
    for view in schema.view_texts():
        assert rows(database, f"SELECT * FROM {view}") == []


# --- words of the dialects ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("started_at", "stopped_at", "expected"),
    [
        ("2026-11-01T12:00:00", "2026-11-01T12:00:00", 0.0),
        ("2026-11-01T12:00:00", "2026-11-01T12:00:59.999500", 59999.5),
        ("2026-11-01T12:00:00.000500", "2026-11-01T12:00:01", 999.5),
        ("2026-11-01T12:00:00.999999", "2026-11-01T12:00:01", 0.001),
        ("2026-11-01T12:00:00.001", "2026-11-01T12:00:00", -1.0),
        ("2026-10-31T23:59:59.999999", "2026-11-01T00:00:00.000001", 0.002),
        ("1969-12-31T23:59:59.900", "1970-01-01T00:00:00.200", 300.0),
        ("0001-01-01T00:00:00", "0001-01-02T00:00:00.123456", 86400123.456),
        ("2026-11-01T12:00:00.1", "2027-11-01T12:00:00.433333", 31536000333.333),
        ("2026-11-01T12:00:00", None, None),
    ],
)
def test_milliseconds_between_are_exact(
    database: Database, started_at: str, stopped_at: str | None, expected: float | None
) -> None:
    start = datetime.fromisoformat(started_at).replace(tzinfo=UTC)
    stop = datetime.fromisoformat(stopped_at).replace(tzinfo=UTC) if stopped_at else None
    if stop is not None:
        assert (stop - start) / timedelta(milliseconds=1) == expected, "as etl.normalize computes duration_ms"
    with database.writing() as connection:
        session(connection, 1, started_at=start, stopped_at=stop)
    assert scalar(database, "SELECT duration_ms FROM v_test_session_summary") == expected


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_words_are_replaced_by_those_of_the_dialect_and_nothing_else_is(dialect: str) -> None:
    source = "SELECT MS_BETWEEN(s.a, s.b), CURRENT_MOMENT(), COUNT(a), 'UTC_DAY(a)' -- MS_BETWEEN(a, b)"
    made = in_dialect(source, dialect, "v_x")
    assert made.endswith("COUNT(a), 'UTC_DAY(a)' -- MS_BETWEEN(a, b)")
    assert "CURRENT_MOMENT()" not in made
    assert made.count("MS_BETWEEN") == 1


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_arguments_of_words_may_hold_parentheses_commas_strings_and_words(dialect: str) -> None:
    inner = "COALESCE(a, substr(b, 1, 2), ',)(')"
    assert in_dialect(f"UTC_DAY({inner})", dialect, "v_x") == in_dialect("UTC_DAY(@)", dialect, "v_x").replace(
        "@", inner
    )
    nested = in_dialect("MS_BETWEEN(MIN(a), SECONDS_AFTER(MAX(b), 5))", dialect, "v_x")
    assert "SECONDS_AFTER" not in nested
    assert in_dialect("SECONDS_AFTER(MAX(b), 5)", dialect, "v_x") in nested


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("SELECT UTCDAY(a)", "v_x: UTCDAY(…) is no SQL word of ours"),
        ("SELECT COUNT(COMMS_BETWEEN(a, b))", "COMMS_BETWEEN(…) is no SQL word"),
        ("SELECT UTC_DAY(GREATEST(a, b))", "GREATEST(…) is no SQL word"),
        ("SELECT UTC_DAY(a, b)", "UTC_DAY(…) takes 1 arguments, not 2"),
        ("SELECT MS_BETWEEN(a)", "MS_BETWEEN(…) takes 2 arguments, not 1"),
        ("SELECT DAYS_AGO()", "DAYS_AGO(…) takes 1 arguments, not 0"),
        ("SELECT UTC_DAY(MAX(a)", "UTC_DAY(…) is not closed"),
    ],
)
def test_a_word_that_there_is_not_is_an_error_that_names_it(source: str, said: str) -> None:
    for dialect in ("sqlite", "postgresql"):
        with pytest.raises(WrongWord, match=re.escape(said)):
            in_dialect(source, dialect, "v_x")


# --- v_test_session_summary ---------------------------------------------------------------------------------


def test_a_session_is_summed_up_from_its_executions(database: Database) -> None:
    with database.writing() as connection:
        session(
            connection,
            1,
            project_id=id_(7),
            name="nightly",
            provider="GITHUB",
            status="CANCELLED",
            environment="production",
            branch_name="main",
            commit_id="abc",
            stopped_at=START + timedelta(seconds=90, microseconds=500),
            link="https://app.checklyhq.com/x",
        )
        execution(connection, 1, 1)
        execution(connection, 1, 2, retries=2, is_retry_flaky=True, retry_cost_ms=1500.5, is_degraded=True)
        execution(connection, 1, 3, status="FAILED", verdict="FAILED", retries=1, retry_cost_ms=0.25)
        execution(connection, 1, 4, status="CANCELLED", verdict=None, retries=1, is_degraded=True, retry_cost_ms=1.0)
        execution(connection, 1, 5, is_degraded=None)
        for number in (1, 2):
            connection.execute(error_groups.insert().values(error_group_id=id_(number)))
            connection.execute(
                test_session_error_groups.insert().values(test_session_id=id_(1), error_group_id=id_(number))
            )
        session(connection, 2)
        execution(connection, 2, 1)
    found = one(rows(database, "SELECT * FROM v_test_session_summary WHERE name = 'nightly'"))
    started_at = found.pop("started_at")
    assert str(started_at).startswith("2026-11-01 12:00:00")
    assert {k: str(v) if isinstance(v, UUID) else v for k, v in found.items()} == {
        "test_session_id": id_(1),
        "account_id": ACCOUNT,
        "project_id": id_(7),
        "name": "nightly",
        "provider": "GITHUB",
        "status": "CANCELLED",
        "environment": "production",
        "branch_name": "main",
        "commit_id": "abc",
        "link": "https://app.checklyhq.com/x",
        "executions": 5,
        "passed": 3,
        "failed": 1,
        "undecided": 1,
        "retry_flaky": 1,
        "degraded": 1,
        "retries": 4,
        "error_groups": 2,
        "retry_cost_ms": 1501.75,
        "duration_ms": 90000.5,
        "pass_rate": 0.75,
        "verdict": "FAILED",
    }
    counts = ("executions", "passed", "failed", "undecided", "retry_flaky", "degraded", "retries", "error_groups")
    assert {name: type(found[name]) for name in counts} == dict.fromkeys(counts, int)
    assert {name: type(found[name]) for name in ("retry_cost_ms", "duration_ms", "pass_rate")} == dict.fromkeys(
        ("retry_cost_ms", "duration_ms", "pass_rate"), float
    )


def test_where_nothing_was_decided_the_rate_is_null_and_sums_are_zero(database: Database) -> None:
    with database.writing() as connection:
        session(connection, 1, status="RUNNING", is_final=False)
        session(connection, 2, status="PASSED")
        execution(connection, 2, 1, status="RUNNING", verdict=None, is_retry_flaky=False)
    for number, executions in ((1, 0), (2, 1)):
        found = one(
            rows(database, "SELECT * FROM v_test_session_summary WHERE test_session_id = :id", id=id_(number))
        )
        assert found["pass_rate"] is None
        assert found["duration_ms"] is None
        assert (found["executions"], found["undecided"]) == (executions, executions)
        assert found["verdict"] == found["status"]
        assert [found[k] for k in ("passed", "failed", "retries", "retry_cost_ms", "error_groups")] == [0] * 5
        assert isinstance(found["retry_cost_ms"], float)
        assert isinstance(found["retries"], int)


def test_a_rate_of_one_third_is_a_float_and_no_integer_division(database: Database) -> None:
    with database.writing() as connection:
        session(connection, 1)
        for execution_no, verdict in enumerate(("PASSED", "FAILED", "FAILED"), 1):
            execution(connection, 1, execution_no, verdict=verdict)
        session(connection, 2)
        execution(connection, 2, 1, verdict="FAILED")
    found = rows(database, "SELECT pass_rate FROM v_test_session_summary ORDER BY test_session_id")
    assert math.isclose(found[0]["pass_rate"], 1 / 3)
    assert found[1]["pass_rate"] == 0.0


# --- v_checks -----------------------------------------------------------------------------------------------


def test_a_check_is_described_by_its_newest_execution(database: Database) -> None:
    hour = timedelta(hours=1)
    with database.writing() as connection:
        for number in (1, 2, 3):
            session(connection, number)
        execution(connection, 2, 1, started_at=START, check_name="old", project_id=id_(1), check_id=id_(9))
        execution(connection, 1, 1, started_at=START + hour, check_name="mid", project_id=id_(2), verdict="FAILED")
        execution(connection, 3, 1, started_at=START + 2 * hour, check_name="new", check_type=None, verdict=None)
        execution(connection, 3, 2, started_at=START - hour, check_key="another", verdict=None)
        execution(connection, 3, 3, account_id=OTHER, check_name="theirs")
        execution(connection, 3, 4, account_id=None, check_name="nobody's")
    found = rows(database, "SELECT * FROM v_checks ORDER BY check_key, check_name")
    assert [(row["check_key"], row["check_name"]) for row in found] == [
        ("another", "check"),
        ("key", "new"),
        ("key", "nobody's"),
        ("key", "theirs"),
    ]
    ours = found[1]
    assert (ours["check_id"], ours["check_type"]) == (None, None), "of the newest, nulls too"
    assert str(ours["project_id"]) == id_(2), "of the newest that has one"
    assert ours["last_verdict"] == "FAILED", "of the newest that was decided"
    assert str(ours["first_started_at"]).startswith("2026-11-01 12:")
    assert str(ours["last_started_at"]).startswith("2026-11-01 14:")
    assert found[0]["last_verdict"] is None
    assert (found[2]["account_id"], str(found[3]["account_id"])) == (None, OTHER)


def test_a_tie_is_decided_by_session_and_then_execution(database: Database) -> None:
    with database.writing() as connection:
        for number in (0x0A, 0xA0, 0x9F):
            session(connection, number)
        execution(connection, 0x0A, 9, check_name="a", verdict="FAILED", project_id=id_(1))
        execution(connection, 0xA0, 2, check_name="c", verdict="PASSED", project_id=id_(2))
        execution(connection, 0xA0, 10, check_name="d", verdict="FAILED", project_id=id_(3))
        execution(connection, 0x9F, 11, check_name="b", verdict="PASSED", project_id=id_(4))
    found = one(rows(database, "SELECT * FROM v_checks"))
    assert (found["check_name"], found["last_verdict"], str(found["project_id"])) == ("d", "FAILED", id_(3))


# --- v_freshness --------------------------------------------------------------------------------------------


def account(connection: Connection, account_id: str, *, days: int | None = 7, **more: Any) -> None:
    retention = None if days is None else days * 86400
    connection.execute(etl_accounts.insert().values(account_id=account_id, retention=retention, pauses=0, **more))


def queued(connection: Connection, number: int, account_id: str | None = ACCOUNT, **more: Any) -> None:
    values = {
        "test_session_id": id_(number),
        "account_id": account_id,
        "state": "queued",
        "priority": 0,
        "claim_order": 0,
        "source": "discovery",
        "attempts": 0,
        "available_at": START,
        "enqueued_at": START,
        **more,
    }
    connection.execute(etl_queue.insert().values(**values))


def freshness(database: Database, account_id: str | None = ACCOUNT) -> dict[str, Any]:
    found = {row["account_id"] and str(row["account_id"]): row for row in rows(database, "SELECT * FROM v_freshness")}
    return found[account_id]


def test_an_account_is_counted_wherever_it_occurs_and_ids_without_one_too(database: Database) -> None:
    third = id_(0x333)
    with database.writing() as connection:
        account(connection, ACCOUNT, last_success_at=START)
        later = now(connection) + timedelta(hours=1)
        session(connection, 1, started_at=START)
        session(connection, 2, started_at=START + timedelta(hours=5))
        session(connection, 3, account_id=third)
        session(connection, 4, account_id=None)
        queued(connection, 11)
        queued(connection, 12, available_at=START - timedelta(days=1))
        queued(connection, 13, available_at=later)
        queued(connection, 14, state="leased", available_at=later)
        queued(connection, 15, state="leased")
        queued(connection, 16, state="dead", available_at=START - timedelta(days=9))
        queued(connection, 17, state="discarded", available_at=START - timedelta(days=9))
        queued(connection, 18, OTHER, available_at=later)
        queued(connection, 19, None)
        queued(connection, 20, None)
    assert len(rows(database, "SELECT * FROM v_freshness")) == 4
    ours = freshness(database)
    assert [ours[name] for name in ("due", "scheduled", "leased", "dead")] == [2, 1, 2, 1]
    assert all(type(ours[name]) is int for name in ("due", "scheduled", "leased", "dead"))
    assert str(ours["oldest_due_at"]).startswith("2026-10-31 12:00:00")
    assert str(ours["newest_started_at"]).startswith("2026-11-01 17:00:00")
    assert str(ours["last_success_at"]).startswith("2026-11-01 12:00:00")
    theirs = freshness(database, OTHER)
    assert [theirs[name] for name in ("due", "scheduled", "leased", "dead")] == [0, 1, 0, 0]
    assert [theirs[k] for k in ("last_success_at", "newest_started_at", "oldest_due_at", "hours_until_loss")] == [
        None
    ] * 4
    assert [freshness(database, third)[name] for name in ("due", "scheduled", "leased", "dead")] == [0] * 4
    nobodys = freshness(database, None)
    assert nobodys["due"] == 2
    assert nobodys["newest_started_at"] is not None
    assert nobodys["hours_until_loss"] is None


def test_the_loss_is_near_when_the_oldest_unexported_session_is_old(database: Database) -> None:
    with database.writing() as connection:
        moment = now(connection)
        account(connection, ACCOUNT, days=7)
        old, hour = moment - timedelta(days=6), timedelta(hours=1)
        queued(connection, 1, session_created_at=old, state="dead", error_kind="rejected")
        queued(connection, 2, session_created_at=old - hour, state="dead", error_kind="not_found")
        queued(connection, 3, session_created_at=old - 2 * hour, state="discarded")
        queued(connection, 4, session_created_at=old - 3 * hour)  # held already
        session(connection, 4)
        queued(connection, 5, session_created_at=None)
        queued(connection, 6, session_created_at=old + hour, state="leased")
        account(connection, OTHER, days=None)
        queued(connection, 7, OTHER, session_created_at=old)
    found = freshness(database)["hours_until_loss"]
    assert isinstance(found, float)
    assert found == pytest.approx(24, abs=0.05)
    assert freshness(database, OTHER)["hours_until_loss"] is None


def test_a_revived_row_counts_again_whatever_it_died_of(database: Database) -> None:
    with database.writing() as connection:
        account(connection, ACCOUNT, days=7)
        queued(connection, 1, session_created_at=now(connection) - timedelta(days=8), error_kind="not_found")
    assert freshness(database)["hours_until_loss"] == pytest.approx(-24, abs=0.05)


def test_a_retention_of_a_hundred_years_is_no_trouble(database: Database) -> None:
    with database.writing() as connection:
        account(connection, ACCOUNT, days=36_000)
        queued(connection, 1, session_created_at=now(connection))
    assert freshness(database)["hours_until_loss"] == pytest.approx(36_000 * 24, abs=0.05)


# --- both engines -------------------------------------------------------------------------------------------


def test_types_are_what_a_bi_tool_expects(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite's columns have no types")
    sql = (
        "SELECT attname, format_type(atttypid, NULL) AS type FROM pg_attribute "
        "WHERE attrelid = CAST(:view AS regclass) AND attnum > 0"
    )
    summary = {row["attname"]: row["type"] for row in rows(database, sql, view="v_test_session_summary")}
    assert {summary[n] for n in ("executions", "passed", "failed", "undecided", "retries", "error_groups")} == {
        "bigint"
    }
    assert {summary[n] for n in ("pass_rate", "retry_cost_ms", "duration_ms")} == {"double precision"}
    assert (summary["test_session_id"], summary["started_at"]) == ("uuid", "timestamp with time zone")
    freshness_types = {row["attname"]: row["type"] for row in rows(database, sql, view="v_freshness")}
    assert freshness_types["hours_until_loss"] == "double precision"
    assert {freshness_types[n] for n in ("due", "scheduled", "leased", "dead")} == {"bigint"}

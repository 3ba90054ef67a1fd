"""API documents become rows: golden cases, illegal and awkward documents, and laws that hold for every legal one."""

from __future__ import annotations

import copy
import functools
import json
import re
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Boolean, Double, Integer, String, Table, Text

from etl import documents, normalize, tables
from etl.documents import Document
from etl.errors import PayloadError
from etl.normalize import ErrorGroupRows, TestSessionRows, models, normalize_error_group, normalize_test_session

DESCRIPTION = Path(__file__).resolve().parents[2] / "shared" / "checkly-openapi.json"
described = pytest.mark.skipif(
    not DESCRIPTION.exists(), reason="the official API description (../shared/checkly-openapi.json) is not here"
)

Row = Any  # a dict, or a struct that reads like one
Json = Any
T = TypeVar("T")


def id_of(word: str) -> str:
    """A UUID that stands for a word."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, word))


SESSION, GROUP = id_of("session"), id_of("group")
ACCOUNT, PROJECT = id_of("account"), id_of("project")
FETCHED_WITH = id_of("fetched with")
START = "2026-11-15T12:00:00.000Z"
STARTED = datetime(2026, 11, 15, 12, tzinfo=UTC)

# What only the save knows.
OF_THE_SAVE = {
    "test_sessions": {"first_exported_at", "exported_at", "etl_run_id"},
    "error_groups": {"account_id", "fetched_at", "stale_since"},
}


def document(value: Json, **options: Any) -> Document:
    return documents.read(json.dumps(value, **options).encode())


def detail(**fields: Json) -> Row:
    return {"testSessionId": SESSION, "status": "PASSED", "startedAt": START, **fields}


def entry(**fields: Json) -> Row:
    return {"id": SESSION, **fields}


def session_rows(
    value: Json, summary: Json = None, held: Mapping[str, Any] | None = None, account_id: str | None = FETCHED_WITH
) -> TestSessionRows:
    return normalize_test_session(
        document(value),
        test_session_id=SESSION,
        account_id=account_id,
        summary=None if summary is None else document(summary),
        # A list entry has filled its columns once.
        held=None if held is None else {"summary_sha256": "0" * 64, **held},
    )


def group_rows(value: Json) -> ErrorGroupRows:
    return normalize_error_group(document(value), error_group_id=GROUP)


def result_ids(found: list[Row] | None) -> list[str]:
    """The ids of result rows, in their order."""
    return [row["test_session_result_id"] for row in found or ()]


def outcome(work: Callable[[], T]) -> T | PayloadError:
    """What it returns, or the one error that it may raise."""
    try:
        return work()
    except PayloadError as error:
        return error


# --- executions ---------------------------------------------------------------------------------------------


def result(
    word: str, type_: str | None = "FINAL", status: str = "PASSED", /, at: str | None = None, **fields: Json
) -> Row:
    """A result of check "a" in "eu"; `at="5-7"` starts it 5 and stops it 7 seconds after the session."""
    value: Row = {
        "testSessionResultId": id_of(word),
        "status": status,
        "checkId": id_of("check a"),
        "checkType": "API",
        "name": "a",
        "runLocation": "eu",
        "testSessionResultLink": f"https://example.org/{word}",
    }
    if type_ is not None:
        value["resultType"] = type_
    if at is not None:
        start, _, stop = at.partition("-")
        value |= {"startedAt": second(start) if start else None, "stoppedAt": second(stop) if stop else None}
    return value | fields


def second(number: str | float) -> str:
    return (STARTED + timedelta(seconds=float(number))).isoformat()


def fold(*results: Row, summary: Json = None, **fields: Json) -> list[Row]:
    rows = session_rows(detail(results=list(results), **fields), summary, account_id=None)
    assert rows.results is not None
    assert rows.executions is not None
    assert_grouping(rows.results, rows.executions)
    return rows.executions


def folded(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """The values of these columns (space separated) of each row."""
    return [tuple(row[name] for name in " ".join(names).split()) for row in rows]


def assert_grouping(results: Sequence[Row], executions: Sequence[Row]) -> None:
    """Laws of every grouping."""
    assert [row["execution_no"] for row in executions] == list(range(1, len(executions) + 1))
    by_position = sorted(results, key=lambda row: row["position"])
    assert list(dict.fromkeys(row["execution_no"] for row in by_position)) == list(range(1, len(executions) + 1))
    assert sum(row["retries"] for row in executions) == sum(row["result_type"] == "ATTEMPT" for row in results)
    for row in executions:
        members = [member for member in results if member["execution_no"] == row["execution_no"]]
        shown = [member for member in members if member["test_session_result_id"] == row["test_session_result_id"]]
        assert len(shown) == 1
        finals = [member for member in members if member["result_type"] == "FINAL"]
        assert shown[0] in (finals or members)
        assert {member["check_id"] for member in members} == {row["check_id"]}
        assert row["run_location"] == shown[0]["run_location"]
        if row["grouped_by"] == "inferred":
            assert len(finals) <= 1


def test_attempts_are_folded_into_the_final_that_follows_them() -> None:
    (row,) = fold(
        result("1", "ATTEMPT", "FAILED", "1-3", hasErrors=True, isDegraded=True),
        result("2", "ATTEMPT", "FAILED", "4-8.5", hasErrors=True),
        result("3", "FINAL", "PASSED", "9-10", hasErrors=False, isDegraded=False, name="a renamed"),
        name="n",
        metadata={"environment": "prod", "branchName": "main", "commitId": "c0ffee"},
        summary=entry(accountId=ACCOUNT, projectId=PROJECT),
    )
    check = id_of("check a")
    assert dict(row) == {
        "test_session_id": SESSION,
        "execution_no": 1,
        "check_key": check,
        "history_key": sha256(f'["{ACCOUNT}","{check}","main","prod","eu"]'.encode()).hexdigest(),
        "grouped_by": "inferred",
        "test_session_result_id": id_of("3"),
        "link": "https://example.org/3",
        "check_id": check,
        "check_name": "a renamed",
        "check_type": "API",
        "run_location": "eu",
        "status": "PASSED",
        "verdict": "PASSED",
        "retries": 2,
        "is_retry_flaky": True,
        "is_degraded": False,
        "has_errors": False,
        "started_at": STARTED + timedelta(seconds=1),
        "stopped_at": STARTED + timedelta(seconds=10),
        "is_ambiguous": False,
        "duration_ms": 1000.0,
        "retry_cost_ms": 6500.0,
        "account_id": ACCOUNT,
        "project_id": PROJECT,
        "environment": "prod",
        "branch_name": "main",
        "commit_id": "c0ffee",
    }


def test_two_locations_interleaved_are_two_executions() -> None:
    executions = fold(
        result("1", "ATTEMPT", "FAILED"),
        result("2", "ATTEMPT", "FAILED", runLocation="us"),
        result("3", "FINAL", "FAILED", runLocation="us"),
        result("4", "FINAL", "PASSED"),
    )
    assert folded(executions, "run_location test_session_result_id retries is_retry_flaky verdict") == [
        ("eu", id_of("4"), 1, True, "PASSED"),
        ("us", id_of("3"), 1, False, "FAILED"),
    ]


def test_a_missing_and_an_empty_location_are_two_locations() -> None:
    executions = fold(
        result("1", "ATTEMPT", runLocation=None), result("2", runLocation=""), result("3", runLocation=None)
    )
    assert folded(executions, "run_location retries") == [(None, 1), ("", 0)]
    assert len(set(folded(executions, "history_key"))) == 2


def test_each_final_closes_one_execution_of_its_check() -> None:
    executions = fold(
        result("1"),
        result("2", "ATTEMPT", "FAILED"),
        result("3", "FINAL", "FAILED"),
        result("4"),
        result("5", "ATTEMPT", "FAILED"),
    )
    assert folded(executions, "execution_no test_session_result_id retries verdict is_retry_flaky") == [
        (1, id_of("1"), 0, "PASSED", False),
        (2, id_of("3"), 1, "FAILED", False),
        (3, id_of("4"), 0, "PASSED", False),
        (4, id_of("5"), 1, None, False),
    ]


def test_without_a_final_the_last_row_is_shown_and_nothing_is_decided() -> None:
    (row,) = fold(
        result("2", "ATTEMPT", "PASSED", "5-6", name="last", isDegraded=True, hasErrors=True),
        result("1", "ATTEMPT", "FAILED", "2-3"),
    )
    assert folded(
        [row], "test_session_result_id", "check_name", "status", "verdict", "retries", "is_retry_flaky"
    ) == [(id_of("2"), "last", "PASSED", None, 2, False)]
    assert (row["stopped_at"], row["duration_ms"], row["retry_cost_ms"]) == (None, None, 2000.0)
    assert row["started_at"] == STARTED + timedelta(seconds=2)
    assert (row["is_degraded"], row["has_errors"]) == (True, True)


def test_a_pending_row_is_undecided_and_no_retry_and_folds_into_its_final() -> None:
    (pending,) = fold(result("1", "PENDING", "RUNNING"))
    assert folded([pending], "status verdict retries retry_cost_ms") == [("RUNNING", None, 0, 0.0)]
    assert pending["started_at"] == STARTED
    (row,) = fold(result("1", "PENDING", "RUNNING", "1-9"), result("2", at="2-3"))
    assert folded([row], "test_session_result_id retries retry_cost_ms") == [(id_of("2"), 0, 0.0)]
    assert row["started_at"] == STARTED + timedelta(seconds=1)


@pytest.mark.parametrize("type_", ["SOMETHING_NEW", ""])
def test_a_result_type_that_is_unknown_is_not_final(type_: str) -> None:
    (row,) = fold(result("1", type_, at="1-2"), result("2", type_, "FAILED", "3-4"))
    assert folded([row], "verdict retries status stopped_at duration_ms retry_cost_ms") == [
        (None, 0, "FAILED", None, None, 0.0)
    ]


@pytest.mark.parametrize("status", ["CANCELLED", "RUNNING", "SOMETHING_NEW", "passed", ""])
def test_a_final_that_neither_passed_nor_failed_is_undecided(status: str) -> None:
    (row,) = fold(result("1", "ATTEMPT", "FAILED"), result("2", "FINAL", status, "1-2"))
    assert folded([row], "status verdict is_retry_flaky duration_ms") == [(status, None, False, 1000.0)]


@pytest.mark.parametrize(
    ("attempts", "final", "flaky"),
    [
        ([], "PASSED", False),
        (["FAILED"], "PASSED", True),
        (["PASSED", "FAILED"], "PASSED", True),
        (["PASSED"], "PASSED", False),
        (["CANCELLED", "RUNNING"], "PASSED", False),
        (["FAILED"], "FAILED", False),
        (["FAILED"], "CANCELLED", False),
    ],
)
def test_retry_flaky_is_a_failed_attempt_and_then_a_pass(attempts: list[str], final: str, flaky: bool) -> None:
    rows = [result(str(number), "ATTEMPT", status) for number, status in enumerate(attempts)]
    (row,) = fold(*rows, result("final", "FINAL", final))
    assert (row["is_retry_flaky"], row["retries"]) == (flaky, len(attempts))


def test_a_failed_row_that_is_no_attempt_makes_nothing_flaky() -> None:
    (row,) = fold(result("1", None, "FAILED", "1-2"), result("2"))
    assert folded([row], "is_retry_flaky retries retry_cost_ms") == [(False, 0, 0.0)]


def test_the_retry_cost_counts_only_attempts_with_both_times() -> None:
    (row,) = fold(
        result("1", "ATTEMPT", "FAILED", "1-1.0015"),
        result("2", "ATTEMPT", "FAILED", "2-"),
        result("3", "ATTEMPT", "FAILED", "-9"),
        result("4", "ATTEMPT", "FAILED"),
        result("5", "PENDING", "RUNNING", "1-100"),
        result("6", "FINAL", "PASSED", "10-20"),
    )
    assert row["retry_cost_ms"] == 1.5
    assert isinstance(fold(result("1"))[0]["retry_cost_ms"], float)


def test_an_execution_starts_with_its_earliest_row_else_with_its_session() -> None:
    for attempt, final, seconds in (("2-3", "7-8", 2), ("7-8", "-9", 7), (None, "-9", 0)):
        (row,) = fold(result("1", "ATTEMPT", at=attempt), result("2", at=final))
        assert row["started_at"] == STARTED + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("at", "duration", "stopped"),
    [("1-2.5", 1500.0, 2.5), ("1-", None, None), ("-2", None, 2), (None, None, None), ("1-1", 0.0, 1)],
)
def test_a_duration_is_that_of_the_final(at: str | None, duration: float | None, stopped: float | None) -> None:
    (row,) = fold(result("1", "ATTEMPT", at="0-99"), result("2", at=at, responseTime=7.25))
    assert row["duration_ms"] == duration
    assert row["stopped_at"] == (None if stopped is None else STARTED + timedelta(seconds=stopped))


def test_executions_count_in_order_of_first_appearance() -> None:
    executions = fold(
        result("1", "ATTEMPT", "FAILED", checkId=id_of("z")),
        result("2", checkId=id_of("a")),
        result("3", checkId=id_of("z")),
        result("4", checkId=id_of("a")),
    )
    assert folded(executions, "execution_no check_id") == [(1, id_of("z")), (2, id_of("a")), (3, id_of("a"))]


@pytest.mark.parametrize(
    ("project", "type_", "name", "key"),
    [
        (PROJECT, "API", "home", f"{PROJECT}:API:home"),
        (None, "API", "home", "-:API:home"),
        (PROJECT.upper(), "TCP", "a:b", f"{PROJECT}:TCP:a:b"),
        (None, None, None, "-::"),
        (PROJECT, "BROWSER", None, f"{PROJECT}:BROWSER:"),
        (PROJECT, "BROWSER", "", f"{PROJECT}:BROWSER:"),
        ("no uuid", "NEW_TYPE", "x" * 5000, "-:NEW_TYPE:" + "x" * 5000),
    ],
)
@pytest.mark.parametrize("check_id", [None, "no uuid", ""])
def test_a_check_without_an_id_is_known_by_project_type_and_name(
    project: str | None, type_: str | None, name: str | None, key: str, check_id: str | None
) -> None:
    value = result("1", checkId=check_id, checkType=type_, name=name)
    (row,) = fold(value, summary=entry(projectId=project))
    assert (row["check_key"], row["check_id"]) == (key, None)


def test_checks_without_an_id_are_told_apart_by_type_and_name() -> None:
    executions = fold(
        result("1", "ATTEMPT", checkId=None, name="x"),
        result("2", "ATTEMPT", checkId=None, name="y"),
        result("3", checkId=None, name="x", checkType="TCP"),
        result("4", checkId=None, name="y"),
        result("5", checkId=None, name="x"),
    )
    assert folded(executions, "check_name check_type retries") == [
        ("x", "API", 1),
        ("y", "API", 1),
        ("x", "TCP", 0),
    ]


def sequenced(rows: Sequence[Row], *sequences: str | None, **session: Any) -> list[Row]:
    """Fold rows again as if their details had told these sequence ids."""
    normalized = session_rows(detail(results=list(rows)))
    assert normalized.results is not None
    for row, sequence in zip(normalized.results, sequences, strict=True):
        row.sequence_id = None if sequence is None else id_of(sequence)
    executions = normalize.normalize_executions(normalized.results, {**normalized.test_session, **session})
    assert_grouping(normalized.results, executions)
    return executions


def test_sequences_group_where_every_row_of_the_check_has_one() -> None:
    executions = sequenced(
        [
            result("1", "ATTEMPT", "FAILED"),
            result("2", "ATTEMPT", "FAILED"),
            result("3", "FINAL", "PASSED"),
            result("4", "FINAL", "FAILED"),
        ],
        *["one", "two", "two", "one"],
    )
    assert folded(executions, "grouped_by test_session_result_id verdict retries is_retry_flaky") == [
        ("sequence", id_of("4"), "FAILED", 1, False),
        ("sequence", id_of("3"), "PASSED", 1, True),
    ]


def test_one_row_without_a_sequence_makes_its_check_inferred_and_no_other() -> None:
    other: Row = {"checkId": id_of("check b")}
    executions = sequenced(
        [
            result("1", "ATTEMPT", "FAILED"),
            result("2", "FINAL", "PASSED"),
            result("3", "FINAL", "PASSED", runLocation="us"),
            result("4", "ATTEMPT", "FAILED", **other),
            result("5", "FINAL", "PASSED", **other),
        ],
        *["one", "two", None, "three", "four"],
    )
    assert folded(executions, "grouped_by run_location retries test_session_result_id") == [
        ("inferred", "eu", 1, id_of("2")),
        ("inferred", "us", 0, id_of("3")),
        ("sequence", "eu", 1, id_of("4")),
        ("sequence", "eu", 0, id_of("5")),
    ]


def test_a_sequence_shared_by_two_checks_is_two_executions() -> None:
    executions = sequenced([result("1"), result("2", checkId=id_of("check b"))], "one", "one")
    assert folded(executions, "execution_no check_id") == [(1, id_of("check a")), (2, id_of("check b"))]


def test_a_sequence_with_several_finals_is_one_execution_that_shows_the_last() -> None:
    results = [result("1", at="1-2"), result("2", "FINAL", "FAILED", at="3-5"), result("3", "ATTEMPT")]
    (row,) = sequenced(results, "x", "x", "x")
    assert folded([row], "test_session_result_id verdict retries duration_ms") == [(id_of("2"), "FAILED", 1, 2000.0)]


def test_executions_of_stored_rows_take_the_columns_of_the_session_as_it_is_now() -> None:
    (row,) = sequenced(
        [result("1", checkId=None, startedAt=None)],
        None,
        account_id=ACCOUNT,
        project_id=PROJECT,
        environment="e",
        branch_name="b",
        commit_id="c",
        started_at=STARTED + timedelta(days=1),
    )
    assert folded(
        [row], "check_key", "started_at", "account_id", "project_id", "environment", "branch_name", "commit_id"
    ) == [(f"{PROJECT}:API:a", STARTED + timedelta(days=1), ACCOUNT, PROJECT, "e", "b", "c")]
    assert normalize.normalize_executions([], {"project_id": None}) == []


def test_a_repeated_result_is_stored_once_with_its_last_values_at_its_first_position() -> None:
    rows = session_rows(
        detail(
            results=[
                result("1", "PENDING", "RUNNING", errorGroupIds=[id_of("g1")]),
                result("2", checkId=id_of("check b")),
                result("1", "FINAL", "FAILED", "1-2", errorGroupIds=[id_of("g2"), id_of("g2")]),
                result("3", "ATTEMPT", checkId=id_of("check b")),
                {**result("1", "FINAL", "PASSED", name="newest"), "testSessionResultId": id_of("1").upper()},
            ]
        )
    )
    assert rows.results is not None
    assert [(row["test_session_result_id"], row["position"], row["execution_no"]) for row in rows.results] == [
        (id_of("1"), 1, 1),
        (id_of("2"), 2, 2),
        (id_of("3"), 4, 3),
    ]
    assert rows.results[0]["check_name"] == "newest"
    assert rows.results[0]["started_at"] is None
    assert rows.result_error_groups == []
    assert rows.executions is not None
    assert folded(rows.executions, "verdict retries") == [("PASSED", 0), ("PASSED", 0), (None, 1)]


def test_the_history_key_tells_every_part_apart_and_null_from_empty() -> None:
    def key(**parts: Json) -> str:
        location = parts.pop("run_location", "eu")
        check = parts.pop("check_id", id_of("check a"))
        summary = {"accountId": parts.pop("account", None), "projectId": PROJECT}
        (row,) = fold(result("1", checkId=check, runLocation=location), summary=entry(**summary), metadata=parts)
        assert re.fullmatch("[0-9a-f]{64}", row["history_key"])
        return str(row["history_key"])

    keys = [
        key(),
        key(account=ACCOUNT),
        key(check_id=id_of("check b")),
        key(check_id=None),
        *[key(branchName=value) for value in ("", "main", "null", '"', "main\u00e9")],
        *[key(environment=value) for value in ("", "main", "prod")],
        *[key(run_location=value) for value in (None, "", "us")],
        key(branchName="a", environment="b"),
        key(branchName='a","b', environment=None),
        key(branchName="a,b"),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_the_history_key_is_the_hash_of_a_compact_json_array() -> None:
    (row,) = fold(result("1", checkId=None, name="\u00fc", runLocation=None), metadata={"environment": ""})
    assert row["history_key"] == sha256('[null,"-:API:\u00fc",null,"",null]'.encode()).hexdigest()


# --- every field --------------------------------------------------------------------------------------------

FULL_DETAIL: Row = {
    "testSessionId": SESSION,
    "testSessionLink": "https://app.checklyhq.com/test-sessions/x",
    "name": "detail name",
    "status": "FAILED",
    "errorGroupIds": [id_of("g2"), id_of("g1").upper(), id_of("g2")],
    "startedAt": "2026-11-15T12:00:00.000Z",
    "stoppedAt": "2026-11-15T12:01:00.500Z",
    "timeElapsed": 60500.25,
    "metadata": {
        "environment": "detail environment",
        "repoUrl": "detail repo",
        "commitId": "detail commit",
        "commitOwner": "detail owner",
        "commitMessage": "detail message",
        "branchName": "detail branch",
        "github": {
            "reporting": True,
            "repository": "o/r",
            "sha": "5ha",
            "runId": "101",
            "runAttempt": "2",
            "workflow": "ci.yml",
            "job": "e2e",
            "eventName": "push",
            "ref": "refs/heads/main",
            "headRef": "feature",
            "baseRef": "main",
            "serverUrl": "https://github.com",
        },
    },
    "results": [
        {
            "testSessionResultId": id_of("r1"),
            "testSessionResultLink": "https://app.checklyhq.com/r1",
            "checkId": id_of("c1"),
            "checkType": "BROWSER",
            "name": "Home page",
            "runLocation": "eu-west-1",
            "errorGroupIds": [id_of("g1"), id_of("g2"), id_of("g1")],
            "resultType": "ATTEMPT",
            "status": "FAILED",
            "hasErrors": True,
            "hasFailures": False,
            "isDegraded": True,
            "aborted": True,
            "responseTime": 12.5,
            "startedAt": "2026-11-15T12:00:01Z",
            "stoppedAt": "2026-11-15T12:00:02.125Z",
        },
        {
            "testSessionResultId": id_of("r2"),
            "status": "PASSED",
            "resultType": "FINAL",
            "errorGroupIds": [id_of("g3")],
        },
    ],
}

FULL_ENTRY: Row = {
    "id": SESSION,
    "accountId": ACCOUNT,
    "projectId": PROJECT,
    "name": "list name",
    "provider": "GITHUB",
    "errorGroupIds": [id_of("g9")],
    "running": [id_of("s1")],
    "passed": None,
    "failed": [],
    "cancelled": [id_of("s2")],
    "status": "RUNNING",
    "region": "eu-central-1",
    "privateLocationId": id_of("private"),
    "invoker": {"name": "Ada", "picture": "https://example.org/ada.png"},
    "repoUrl": "list repo",
    "commitId": "list commit",
    "commitOwner": "list owner",
    "commitMessage": "list message",
    "branchName": "list branch",
    "environment": "list environment",
    "startedAt": "2020-01-01T00:00:00Z",
    "stoppedAt": "2020-01-01T00:00:01Z",
    "created_at": "2026-11-15T11:59:59.123Z",
    "updated_at": "2026-11-15T12:02:00+01:00",
}

FROM_BOTH = {
    "name": "name",
    "environment": "environment",
    "repoUrl": "repo_url",
    "commitId": "commit_id",
    "commitOwner": "commit_owner",
    "commitMessage": "commit_message",
    "branchName": "branch_name",
}
FROM_THE_LIST = {
    "account_id": ACCOUNT,
    "project_id": PROJECT,
    "provider": "GITHUB",
    "region": "eu-central-1",
    "private_location_id": id_of("private"),
    "invoker_name": "Ada",
    "created_at": datetime(2026, 11, 15, 11, 59, 59, 123000, tzinfo=UTC),
    "updated_at": datetime(2026, 11, 15, 11, 2, tzinfo=UTC),
}
FROM_THE_DETAIL = {
    "github_reporting": True,
    "github_repository": "o/r",
    "github_sha": "5ha",
    "github_run_id": "101",
    "github_run_attempt": "2",
    "github_workflow": "ci.yml",
    "github_job": "e2e",
    "github_event_name": "push",
    "github_ref": "refs/heads/main",
    "github_head_ref": "feature",
    "github_base_ref": "main",
    "github_server_url": "https://github.com",
    "time_elapsed_ms": 60500.25,
    "link": "https://app.checklyhq.com/test-sessions/x",
}
FULL_SESSION_ROW: Row = {
    "test_session_id": SESSION,
    "name": "detail name",
    "status": "FAILED",
    "is_final": True,
    "environment": "detail environment",
    "repo_url": "detail repo",
    "branch_name": "detail branch",
    "commit_id": "detail commit",
    "commit_owner": "detail owner",
    "commit_message": "detail message",
    "started_at": STARTED,
    "stopped_at": datetime(2026, 11, 15, 12, 1, 0, 500000, tzinfo=UTC),
    **FROM_THE_LIST,
    **FROM_THE_DETAIL,
}
NO_DETAILS = dict.fromkeys(
    [
        "details_fetched_at",
        "sequence_id",
        "attempts",
        "file_path",
        "private_location_id",
        "over_max_response_time",
        "is_cancelled",
        "schedule_error",
        "trace_id",
    ]
)

FULL_GROUP: Row = {
    "id": GROUP,
    "projectId": PROJECT,
    "environments": ["prod", "staging", "prod"],
    "errorHash": "abc",
    "rawErrorMessage": "raw 42",
    "cleanedErrorMessage": "raw N",
    "firstSeen": "2026-11-01T00:00:00Z",
    "lastSeen": "2026-11-15T00:00:00.5Z",
    "archivedUntilNextEvent": True,
    "pwtMetadata": [
        {"projectName": "p", "specId": "s-1", "testFile": "f.ts", "testTitle": "t", "suitePath": ["a", "b"]},
        {"projectName": "p2", "specId": 7, "testFile": "g.ts", "testTitle": "u", "suitePath": []},
        {},
    ],
    "rootCauseAnalyses": [
        {
            "id": id_of("rca").upper(),
            "created_at": "2026-11-15T01:00:00Z",
            "analysis": {
                "classification": "INFRA ERROR",
                "userImpact": "none",
                "rootCause": "a timeout",
                "codeFix": "wait",
                "evidence": [{"artifacts": [1, None]}],
            },
            "provider": "openai",
            "model": "m",
            "durationMs": 1234.5,
            "userContext": {"kept": "out"},
        },
        {},
    ],
}


def test_every_field_of_a_test_session_reaches_its_column() -> None:
    one, other = document(FULL_DETAIL), document(FULL_ENTRY)
    rows = normalize_test_session(one, test_session_id=SESSION, account_id=FETCHED_WITH, summary=other)
    assert rows.test_session == {
        **FULL_SESSION_ROW,
        "payload_sha256": one.sha256,
        "summary_sha256": other.sha256,
    }
    assert rows.test_session_id == SESSION
    assert rows.is_final is True
    assert rows.error_group_ids == [id_of("g2"), id_of("g1")]
    assert rows.drift.found == {}
    assert rows.test_session.keys() == columns(tables.test_sessions)


def test_every_field_of_a_result_reaches_its_column() -> None:
    rows = session_rows(FULL_DETAIL)
    assert [dict(row) for row in rows.results or ()] == [
        {
            "test_session_id": SESSION,
            "test_session_result_id": id_of("r1"),
            "position": 1,
            "execution_no": 1,
            "check_id": id_of("c1"),
            "check_type": "BROWSER",
            "check_name": "Home page",
            "run_location": "eu-west-1",
            "result_type": "ATTEMPT",
            "status": "FAILED",
            "has_errors": True,
            "has_failures": False,
            "is_degraded": True,
            "is_aborted": True,
            "response_time_ms": 12.5,
            "started_at": STARTED + timedelta(seconds=1),
            "stopped_at": STARTED + timedelta(seconds=2.125),
            "link": "https://app.checklyhq.com/r1",
            **NO_DETAILS,
        },
        {
            "test_session_id": SESSION,
            "test_session_result_id": id_of("r2"),
            "position": 2,
            "execution_no": 2,
            "result_type": "FINAL",
            "status": "PASSED",
            **dict.fromkeys(["check_id", "check_type", "check_name", "run_location"]),
            **dict.fromkeys(["has_errors", "has_failures", "is_degraded", "is_aborted"]),
            **dict.fromkeys(["response_time_ms", "started_at", "stopped_at", "link"]),
            **NO_DETAILS,
        },
    ]
    assert rows.result_error_groups == [
        (id_of("r1"), id_of("g1")),
        (id_of("r1"), id_of("g2")),
        (id_of("r2"), id_of("g3")),
    ]
    assert rows.results is not None
    assert rows.results[0].keys() == columns(tables.test_session_results)
    assert result_ids(rows.results) == [id_of("r1"), id_of("r2")]
    assert rows.executions is not None
    assert rows.executions[0].keys() == columns(tables.check_executions)


def test_every_field_of_an_error_group_reaches_its_column() -> None:
    rows = group_rows(FULL_GROUP)
    assert rows.error_group == {
        "error_group_id": GROUP,
        "project_id": PROJECT,
        "error_hash": "abc",
        "raw_error_message": "raw 42",
        "cleaned_error_message": "raw N",
        "first_seen": datetime(2026, 11, 1, tzinfo=UTC),
        "last_seen": datetime(2026, 11, 15, 0, 0, 0, 500000, tzinfo=UTC),
        "archived_until_next_event": True,
    }
    assert rows.environments == ["prod", "staging"]
    assert rows.playwright_tests == [
        {
            "error_group_id": GROUP,
            "position": 1,
            "project_name": "p",
            "spec_id": "s-1",
            "test_file": "f.ts",
            "test_title": "t",
            "suite_path": ["a", "b"],
        },
        {
            "error_group_id": GROUP,
            "position": 2,
            "project_name": "p2",
            "spec_id": "7",
            "test_file": "g.ts",
            "test_title": "u",
            "suite_path": [],
        },
        {
            "error_group_id": GROUP,
            "position": 3,
            **dict.fromkeys(["project_name", "spec_id", "test_file", "test_title", "suite_path"]),
        },
    ]
    assert rows.root_cause_analyses == [
        {
            "error_group_id": GROUP,
            "position": 1,
            "root_cause_analysis_id": id_of("rca"),
            "created_at": datetime(2026, 11, 15, 1, tzinfo=UTC),
            "provider": "openai",
            "model": "m",
            "duration_ms": 1234.5,
            "classification": "INFRA ERROR",
            "user_impact": "none",
            "root_cause": "a timeout",
            "code_fix": "wait",
            "analysis": FULL_GROUP["rootCauseAnalyses"][0]["analysis"],
        },
        {
            "error_group_id": GROUP,
            "position": 2,
            **dict.fromkeys(["root_cause_analysis_id", "created_at", "provider", "model", "duration_ms"]),
            **dict.fromkeys(["classification", "user_impact", "root_cause", "code_fix", "analysis"]),
        },
    ]
    assert rows.drift.found == {}
    assert rows.error_group.keys() == columns(tables.error_groups)
    assert rows.playwright_tests[0].keys() == columns(tables.error_group_playwright_tests)
    assert rows.root_cause_analyses[0].keys() == columns(tables.error_group_root_cause_analyses)


def columns(table: Table) -> set[str]:
    """The columns of a table that normalize fills."""
    return {column.name for column in table.columns} - OF_THE_SAVE.get(table.name, set())


def test_the_least_document_becomes_a_row_of_nulls() -> None:
    rows = session_rows(detail())
    row = dict(rows.test_session)
    assert row.pop("payload_sha256") == document(detail()).sha256
    assert {name: value for name, value in row.items() if value is not None} == {
        "test_session_id": SESSION,
        "account_id": FETCHED_WITH,
        "status": "PASSED",
        "is_final": True,
        "started_at": STARTED,
    }
    assert row.keys() | {"payload_sha256"} == columns(tables.test_sessions)
    assert (rows.results, rows.executions, rows.error_group_ids, rows.result_error_groups) == (None, None, None, [])
    assert {name: value for name, value in group_rows({"id": GROUP}).error_group.items() if value is not None} == {
        "error_group_id": GROUP
    }


def test_absent_results_are_unknown_and_an_empty_list_is_none() -> None:
    assert session_rows(detail(results=None)).results is None
    rows = session_rows(detail(results=[]))
    assert (rows.results, rows.executions) == ([], [])


# --- which document wins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FROM_BOTH)
def test_the_detail_wins_a_field_of_both_and_neither_nulls_the_others(field: str) -> None:
    def told(by_detail: Row, by_list: Row) -> Json:
        value = detail(**by_detail) if field == "name" else detail(metadata=by_detail)
        return session_rows(value, entry(**by_list)).test_session[FROM_BOTH[field]]

    nothing: list[Row] = [{}, {field: None}]
    assert told({field: "detail"}, {field: "list"}) == "detail"
    assert told({field: ""}, {field: "list"}) == ""
    for absent in nothing:
        assert told({field: "detail"}, absent) == "detail"
        assert told(absent, {field: "list"}) == "list"
        assert told(absent, {field: ""}) == ""
        for other in nothing:
            assert told(absent, other) is None
    assert session_rows(detail(metadata=None), entry(**{field: "list"})).test_session[FROM_BOTH[field]] == "list"


@pytest.mark.parametrize(
    ("of_detail", "of_list", "head_ref", "branch"),
    [
        (None, None, "pay-1", "pay-1"),
        ("main", None, "pay-1", "main"),
        (None, "main", "pay-1", "main"),
        (None, None, "", None),
        (None, None, None, None),
        ("", None, "pay-1", ""),
    ],
)
def test_without_a_branch_it_is_that_of_the_pull_request(
    of_detail: str | None, of_list: str | None, head_ref: str | None, branch: str | None
) -> None:
    metadata = {"branchName": of_detail, "github": {"headRef": head_ref}}
    rows = session_rows(detail(metadata=metadata, results=[result("1")]), entry(branchName=of_list))
    assert rows.test_session["branch_name"] == branch
    assert rows.executions is not None
    assert rows.executions[0]["branch_name"] == branch
    assert rows.test_session["github_head_ref"] == head_ref


def test_a_broken_field_of_a_list_entry_keeps_what_the_row_holds() -> None:
    broken = entry(created_at="yesterday", provider=7, region="eu-west-1", invoker={"name": 7})
    held = {"created_at": STARTED, "provider": "API", "region": "us-east-1", "invoker_name": "Ada"}
    session = session_rows(detail(), broken, held).test_session
    assert session["region"] == "eu-west-1", "the list tells"
    assert (session["created_at"], session["provider"], session["invoker_name"]) == (STARTED, "API", "Ada")
    session = session_rows(detail(), broken).test_session
    assert (session["created_at"], session["provider"], session["invoker_name"]) == (None, None, None)


def test_the_list_entry_tells_what_only_it_knows_and_nulls_nothing_of_the_detail() -> None:
    row = session_rows(FULL_DETAIL, entry()).test_session
    for column, value in FROM_THE_DETAIL.items():
        assert row[column] == value
    for column in FROM_THE_LIST.keys() - {"account_id"}:
        assert row[column] is None
    assert row["account_id"] == FETCHED_WITH
    assert session_rows(FULL_DETAIL, entry(invoker={})).test_session["invoker_name"] is None
    row = session_rows(detail(), FULL_ENTRY).test_session
    for column, value in FROM_THE_LIST.items():
        assert row[column] == value
    for column in FROM_THE_DETAIL:
        assert row[column] is None
    assert (row["status"], row["started_at"]) == ("PASSED", STARTED)  # never the list's


def test_the_account_is_the_one_it_was_fetched_with_until_a_list_entry_says_otherwise() -> None:
    def account(summary: Json = None, **options: Any) -> Json:
        return session_rows(detail(), summary, **options).test_session["account_id"]

    assert account() == FETCHED_WITH
    assert account(account_id=None) is None
    assert account(entry(accountId=ACCOUNT)) == ACCOUNT
    assert account(entry(accountId=ACCOUNT.upper())) == ACCOUNT
    assert account(entry(accountId=None)) == FETCHED_WITH
    assert account(entry(accountId="no uuid")) == FETCHED_WITH
    assert account(held={"account_id": ACCOUNT}) == ACCOUNT
    assert account(held={"account_id": None}) == FETCHED_WITH
    assert account(entry(accountId=ACCOUNT), held={"account_id": id_of("old")}) == ACCOUNT


def test_where_the_list_entry_is_not_at_hand_its_columns_come_from_the_row() -> None:
    held = {
        **session_rows(FULL_DETAIL, FULL_ENTRY).test_session,
        "first_exported_at": STARTED,
        "exported_at": STARTED,
        "etl_run_id": id_of("run"),
    }
    rows = session_rows(detail(results=[result("1", checkId=None)]), held=held)
    for column, value in FROM_THE_LIST.items():
        assert rows.test_session[column] == value
    assert rows.test_session["summary_sha256"] == document(FULL_ENTRY).sha256
    assert rows.test_session["payload_sha256"] != held["payload_sha256"]
    for column in FROM_BOTH.values():
        assert rows.test_session[column] == held[column]
    for column in FROM_THE_DETAIL:
        assert rows.test_session[column] is None, "what only the detail knows comes from the detail"
    assert rows.test_session["status"] == "PASSED"
    assert rows.error_group_ids is None
    assert rows.test_session.keys() == columns(tables.test_sessions)
    assert rows.executions is not None
    assert rows.executions[0]["check_key"] == f"{PROJECT}:API:a"
    assert folded(rows.executions, "account_id project_id branch_name") == [(ACCOUNT, PROJECT, "detail branch")]


def test_a_list_entry_at_hand_leaves_the_row_aside() -> None:
    held = session_rows(FULL_DETAIL, FULL_ENTRY).test_session
    summary = entry(region="us")
    rows = session_rows(detail(), summary, held=held)
    assert rows.test_session == session_rows(detail(), summary).test_session
    assert rows.test_session["summary_sha256"] == document(summary).sha256


@pytest.mark.parametrize(
    ("by_detail", "by_list", "expected"),
    [
        ({"errorGroupIds": [id_of("a")]}, {"errorGroupIds": [id_of("b")]}, [id_of("a")]),
        ({"errorGroupIds": []}, {"errorGroupIds": [id_of("b")]}, []),
        ({"errorGroupIds": None}, {"errorGroupIds": [id_of("b").upper(), id_of("b")]}, [id_of("b")]),
        ({}, {"errorGroupIds": []}, []),
        ({}, {"errorGroupIds": None}, None),
        ({}, {}, None),
        ({"errorGroupIds": []}, {"errorGroupIds": ["not needed, not judged"]}, []),
    ],
)
def test_error_groups_of_a_session_come_from_the_detail_else_from_the_list(
    by_detail: Row, by_list: Row, expected: list[str] | None
) -> None:
    assert session_rows(detail(**by_detail), entry(**by_list)).error_group_ids == expected


STOP = "2026-11-15T13:00:00Z"
STOPPED = datetime(2026, 11, 15, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    ("by_detail", "by_list", "held", "expected"),
    [
        ({"stoppedAt": START}, {"stoppedAt": STOP}, None, STARTED),
        ({"stoppedAt": None}, {"stoppedAt": STOP}, None, None),  # null is a value: not stopped
        ({}, {"stoppedAt": STOP}, None, STOPPED),
        ({}, {"stoppedAt": None}, None, None),
        ({}, {}, None, None),
        ({}, None, {"stopped_at": STOPPED}, STOPPED),
        ({"stoppedAt": None}, None, {"stopped_at": STOPPED}, None),
        ({"stoppedAt": START}, None, {"stopped_at": STOPPED}, STARTED),
        ({}, {}, {"stopped_at": STOPPED}, None),
    ],
)
def test_the_end_is_the_details_unless_it_does_not_tell(
    by_detail: Row, by_list: Json, held: Mapping[str, Any] | None, expected: datetime | None
) -> None:
    summary = None if by_list is None else entry(**by_list)
    assert session_rows(detail(**by_detail), summary, held).test_session["stopped_at"] == expected


@pytest.mark.parametrize("status", ["PASSED", "FAILED", "CANCELLED", "RUNNING", "TIMED_OUT", "passed", ""])
@pytest.mark.parametrize(
    "stopped_at", [{}, {"stoppedAt": None}, {"stoppedAt": STOP}], ids=["absent", "null", "stopped"]
)
def test_final_is_passed_failed_cancelled_or_any_other_status_with_an_end(status: str, stopped_at: Row) -> None:
    rows = session_rows(detail(status=status, **stopped_at))
    final = status in ("PASSED", "FAILED", "CANCELLED") or stopped_at.get("stoppedAt") is not None
    assert rows.is_final is final
    assert rows.test_session["is_final"] is final
    assert rows.test_session["status"] == status
    if not stopped_at:
        assert session_rows(detail(status=status), entry(status="PASSED")).is_final is final
        by_list = session_rows(detail(status=status), entry(stoppedAt=STOP, status="PASSED"))
        by_row = session_rows(detail(status=status), held={"stopped_at": STOPPED, "is_final": True})
        assert by_list.is_final is by_row.is_final is (status != "RUNNING"), "a detail may be behind its entry"
        assert by_list.test_session["stopped_at"] == by_row.test_session["stopped_at"] == STOPPED


# --- illegal documents --------------------------------------------------------------------------------------

WRONG: dict[str, Json] = {
    "str": "a string",
    "int": 7,
    "float": 1.5,
    "bool": True,
    "array": [1],
    "object": {"a": 1},
    "null": None,
}
LEGAL = {
    "text": {"str", "null"},
    "flag": {"bool", "null"},
    "number": {"int", "float", "null"},
    "text or integer": {"str", "int", "null"},
    "time": {"null"},
    "ids": {"null"},
    "texts": {"null"},
    "object": {"object", "null"},
    "objects": {"null"},
    "anything": set(WRONG),
    "key": set[str](),
    "needed text": {"str"},
    "needed time": set[str](),
}

# (field of the document, its place in the path, kind)
DETAIL_FIELDS = [
    ("testSessionId", "key"),
    ("testSessionLink", "text"),
    ("name", "text"),
    ("status", "needed text"),
    ("errorGroupIds", "ids"),
    ("startedAt", "needed time"),
    ("stoppedAt", "time"),
    ("timeElapsed", "number"),
    ("metadata", "object"),
    *[(f"metadata.{name}", "text") for name in FROM_BOTH if name != "name"],
    ("metadata.github", "object"),
    ("metadata.github.reporting", "flag"),
    *[
        (f"metadata.github.{name}", "text or integer" if name.startswith("run") else "text")
        for name in FULL_DETAIL["metadata"]["github"]
        if name != "reporting"
    ],
    ("results", "objects"),
    ("results.1.testSessionResultId", "key"),
    ("results.1.status", "needed text"),
    *[
        (f"results.1.{name}", "text")
        for name in ("testSessionResultLink", "checkId", "checkType", "name", "runLocation", "resultType")
    ],
    *[(f"results.1.{name}", "flag") for name in ("hasErrors", "hasFailures", "isDegraded", "aborted")],
    ("results.1.errorGroupIds", "ids"),
    ("results.1.responseTime", "number"),
    ("results.1.startedAt", "time"),
    ("results.1.stoppedAt", "time"),
]
ENTRY_FIELDS = [
    ("id", "key"),
    *[
        (name, "text")
        for name in ("accountId", "projectId", "provider", "region", "privateLocationId", "invoker.name", *FROM_BOTH)
    ],
    ("errorGroupIds", "ids"),
    *[
        (name, "anything")
        for name in ("running", "passed", "failed", "cancelled", "status", "startedAt", "invoker.picture")
    ],
    ("invoker", "object"),
    *[(name, "time") for name in ("stoppedAt", "created_at", "updated_at")],
]
GROUP_FIELDS = [
    ("id", "key"),
    *[(name, "text") for name in ("projectId", "errorHash", "rawErrorMessage", "cleanedErrorMessage")],
    ("environments", "texts"),
    ("firstSeen", "time"),
    ("lastSeen", "time"),
    ("archivedUntilNextEvent", "flag"),
    ("pwtMetadata", "objects"),
    *[(f"pwtMetadata.1.{name}", "text") for name in ("projectName", "testFile", "testTitle")],
    ("pwtMetadata.1.specId", "text or integer"),
    ("pwtMetadata.1.suitePath", "texts"),
    ("rootCauseAnalyses", "objects"),
    *[(f"rootCauseAnalyses.1.{name}", "text") for name in ("id", "provider", "model")],
    ("rootCauseAnalyses.1.created_at", "time"),
    ("rootCauseAnalyses.1.durationMs", "number"),
    ("rootCauseAnalyses.1.analysis", "anything"),
    ("rootCauseAnalyses.1.userContext", "anything"),
]


def json_path(field: str) -> str:
    return "$." + re.sub(r"\.(\d+)", r"[\1]", field)


def with_value(whole: Json, field: str, value: Json) -> Json:
    """A copy of a document with another value at a place; `...` deletes it."""
    whole = copy.deepcopy(whole)
    *above, last = field.split(".")
    target = whole
    for step in above:
        target = target[int(step)] if step.isdigit() else target[step]
    if value is ...:
        target.pop(last, None)
    else:
        target[last] = value
    return whole


def normalize_as(which: str, value: Json) -> Any:
    if which == "detail":
        return session_rows(value, FULL_ENTRY)
    if which == "entry":
        return session_rows(with_value(FULL_DETAIL, "errorGroupIds", ...), value)
    return group_rows(value)


DOCUMENTS = {
    "detail": (FULL_DETAIL, DETAIL_FIELDS),
    "entry": (FULL_ENTRY, ENTRY_FIELDS),
    "group": (FULL_GROUP, GROUP_FIELDS),
}
EVERY_FIELD = [
    pytest.param(which, field, kind, id=f"{which}-{field}")
    for which, (_, fields) in DOCUMENTS.items()
    for field, kind in fields
]


def ways(value: Row) -> Iterator[Row]:
    """The same document on every way through the decoders: plain, with an unknown field, with an escape."""
    yield value
    yield {**value, "unknownField": 1}
    yield {**value, "unknownField": "\x00\ud800"}


@pytest.mark.parametrize(("which", "field", "kind"), EVERY_FIELD)
def test_a_wrong_type_is_told_with_the_place_of_its_field(which: str, field: str, kind: str) -> None:
    for type_, wrong in WRONG.items():
        for value in ways(with_value(DOCUMENTS[which][0], field, wrong)):
            if type_ in LEGAL[kind]:
                assert_rows(normalize_as(which, value))
                continue
            in_a_list = type_ == "array" and kind in ("ids", "texts", "objects")
            assert_refused(which, value, json_path(field) + ("[0]" if in_a_list else ""))


CLEAR = r"Expected `.+`, got `.+`$|Invalid RFC3339 encoded datetime$|is not a UUID$|is missing$"


def assert_refused(which: str, value: Json, path: str, reason: str = CLEAR) -> None:
    """A document is refused. A broken field of a list entry is drift and costs only itself, its id the entry."""
    if which == "entry":
        rows = normalize_as(which, value)
        assert isinstance(rows, TestSessionRows)
        field = re.findall(r"\w+", path)[0]
        rest = None if field == "id" else with_value(FULL_ENTRY, field, ...)
        without = session_rows(with_value(FULL_DETAIL, "errorGroupIds", ...), rest)
        for session in (rows.test_session, without.test_session):
            session["summary_sha256"] = None
        assert rows.test_session == without.test_session
        assert (rows.results, rows.executions) == (without.results, without.executions)
        assert rows.error_group_ids == without.error_group_ids
        assert re.match(reason, dict(rows.drift.found)[("test_session_summary", path)][1])
        return
    with pytest.raises(PayloadError) as caught:
        normalize_as(which, value)
    assert caught.value.json_path == path
    assert re.match(reason, caught.value.reason)
    assert str(caught.value) == f"{caught.value.json_path}: {caught.value.reason}"


@pytest.mark.parametrize(("which", "field", "kind"), EVERY_FIELD)
def test_a_missing_field_is_told_where_it_is_needed_and_null_else(which: str, field: str, kind: str) -> None:
    for value in ways(with_value(DOCUMENTS[which][0], field, ...)):
        if kind not in ("key", "needed text", "needed time"):
            assert_rows(normalize_as(which, value))
            continue
        assert_refused(which, value, json_path(field))


@pytest.mark.parametrize(("which", "field", "kind"), [p for p in EVERY_FIELD if p.values[2] in ("ids", "key")])
@pytest.mark.parametrize(
    "wrong",
    ["", "no uuid", SESSION[:-1], f"{SESSION}0", f"{SESSION}\n", f" {SESSION}", SESSION.replace("-", ""), "\ud800"],
)
def test_a_key_of_ours_that_is_no_uuid_is_told_with_its_place(which: str, field: str, kind: str, wrong: str) -> None:
    value = [id_of("fine"), wrong] if kind == "ids" else wrong
    path = json_path(field) + ("[1]" if kind == "ids" else "")
    assert_refused(which, with_value(DOCUMENTS[which][0], field, value), path)


@pytest.mark.parametrize(("which", "field"), [("detail", "testSessionId"), ("entry", "id"), ("group", "id")])
def test_a_document_of_another_id_is_refused(which: str, field: str) -> None:
    value = with_value(DOCUMENTS[which][0], field, id_of("another").upper())
    assert_refused(which, value, f"$.{field}", f"is the document of {id_of('another')}, not of")


@pytest.mark.parametrize("value", [None, True, 7, 1.5, "x", [], [FULL_DETAIL]])
def test_a_document_that_is_no_object_is_refused(value: Json) -> None:
    for refused in (lambda: session_rows(value), lambda: group_rows(value)):
        with pytest.raises(PayloadError, match="Expected `object`") as caught:
            refused()
        assert caught.value.json_path == "$"
    rows = normalize_test_session(
        document(detail()), test_session_id=SESSION, account_id=None, summary=document(value)
    )
    assert rows.drift.found[("test_session_summary", "$")][1].startswith("Expected `object`")
    with pytest.raises(PayloadError, match="Expected `object`"):
        normalize.entry_key(document(value))


@pytest.mark.parametrize(
    "time",
    [
        "",
        "yesterday",
        "2026-11-15",
        "12:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-11-15T24:00:00Z",
        "2026-11-15T12:00:00+24:00",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "1763208000",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:59.9999999Z",
        "9999-12-31T23:59:60Z",
        "2016-13-31T23:59:60Z",
        "2016-12-31T23:59:61Z",
    ],
)
@pytest.mark.parametrize(
    ("which", "field", "kind"), [p for p in EVERY_FIELD if p.values[2] in ("time", "needed time")]
)
def test_a_time_that_is_none_or_lies_out_of_range_is_told_with_its_place(
    which: str, field: str, kind: str, time: str
) -> None:
    value = with_value(DOCUMENTS[which][0], field, time)
    if which == "entry" and field == "stoppedAt":
        value = with_value(FULL_ENTRY, field, time)
    assert_refused(which, value, json_path(field), r".*(RFC3339|outside of the years 1 to 9999)")


def test_the_reason_never_quotes_the_document() -> None:
    for field, _ in DETAIL_FIELDS:
        for wrong in ("secret-word", ["secret-word"], {"secret-word": "secret-word"}):
            value = with_value(FULL_DETAIL, field, wrong)
            ended = outcome(functools.partial(session_rows, value))
            assert isinstance(ended, TestSessionRows) or "secret" not in str(ended)


# --- legal but awkward --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-15T12:00:00Z", STARTED),
        ("2026-11-15T12:00:00z", STARTED),
        ("2026-11-15t12:00:00Z", STARTED),
        ("2026-11-15 12:00:00Z", STARTED),
        ("2026-11-15T12:00:00", STARTED),
        ("2026-11-15T13:30:00+01:30", STARTED),
        ("2026-11-14T12:01:00-23:59", STARTED),
        ("2026-11-15T12:00:00-00:00", STARTED),
        ("2026-11-15T12:00:00.5Z", STARTED + timedelta(milliseconds=500)),
        ("2026-11-15T12:00:00.123456Z", STARTED + timedelta(microseconds=123456)),
        ("2026-11-15T12:00:00.123456499Z", STARTED + timedelta(microseconds=123456)),
        ("2026-11-15T11:59:59.999999999Z", STARTED),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00-01:00", datetime(1, 1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("9999-12-31T23:59:59+01:00", datetime(9999, 12, 31, 22, 59, 59, tzinfo=UTC)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        # A leap second is the second after it.
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2016-12-31T23:59:60.25Z", datetime(2017, 1, 1, microsecond=250_000, tzinfo=UTC)),
        ("2017-01-01T00:59:60+01:00", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2016-12-31t23:59:60z", datetime(2017, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_of_any_writing_become_utc(text: str, expected: datetime) -> None:
    for value in ways(detail(startedAt=text, results=[result("1", startedAt=text, stoppedAt=text)])):
        rows = session_rows(value, entry(created_at=text))
        assert rows.results is not None
        for time in (
            rows.test_session["started_at"],
            rows.test_session["created_at"],
            rows.results[0]["started_at"],
            rows.results[0]["stopped_at"],
        ):
            assert time == expected
            assert time.tzinfo is UTC


def test_upper_case_uuids_become_lower_case() -> None:
    def upper(value: Json) -> Json:
        if isinstance(value, dict):
            return {key: upper(item) for key, item in value.items()}
        if isinstance(value, list):
            return [upper(item) for item in value]
        is_id = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value)
        return value.upper() if is_id else value

    assert upper(FULL_DETAIL) != FULL_DETAIL
    assert same(session_rows(upper(FULL_DETAIL), upper(FULL_ENTRY))) == same(session_rows(FULL_DETAIL, FULL_ENTRY))
    group = group_rows(upper(FULL_GROUP))
    assert group.error_group == group_rows(FULL_GROUP).error_group
    assert_rows(group)


def same(rows: TestSessionRows) -> tuple[Any, ...]:
    """All that does not depend on how the document is written."""
    session = {name: value for name, value in rows.test_session.items() if not name.endswith("_sha256")}
    return session, rows.results, rows.executions, rows.error_group_ids, rows.result_error_groups


FOREIGN_IDS = [
    ("detail", "results.1.checkId", "test_session", "$.results[].checkId"),
    ("entry", "accountId", "test_session_summary", "$.accountId"),
    ("entry", "projectId", "test_session_summary", "$.projectId"),
    ("entry", "privateLocationId", "test_session_summary", "$.privateLocationId"),
    ("group", "projectId", "error_group", "$.projectId"),
    ("group", "rootCauseAnalyses.1.id", "error_group", "$.rootCauseAnalyses[].id"),
]


@pytest.mark.parametrize(("which", "field", "kind", "path"), FOREIGN_IDS)
@pytest.mark.parametrize("wrong", ["12345", "", "x" * 1000, f"{SESSION}x", "\x00"])
def test_an_id_that_is_no_key_of_ours_becomes_null_and_drift(
    which: str, field: str, kind: str, path: str, wrong: str
) -> None:
    rows = normalize_as(which, with_value(DOCUMENTS[which][0], field, wrong))
    assert_rows(rows)
    assert rows.drift.found == {(kind, path): (1, wrong[:200].replace("\x00", "\ufffd"))}
    if which == "group":
        assert rows.error_group["project_id"] == (None if field == "projectId" else PROJECT)
        assert rows.root_cause_analyses[1]["root_cause_analysis_id"] is None
    elif which == "detail":
        assert rows.results[1]["check_id"] is None
    else:
        column = re.sub("([A-Z])", r"_\1", field).lower()
        assert rows.test_session[column] == (FETCHED_WITH if column == "account_id" else None)


def test_unknown_values_of_enums_are_stored_verbatim_and_noted() -> None:
    rows = session_rows(
        detail(
            status="TIMED_OUT",
            results=[
                result("1", "SKIPPED", "FLAKY", checkType="SMTP"),
                result("2", "SKIPPED", "passed", checkType="QUIC"),
                result("3", None, checkType=None),
            ],
        ),
        entry(provider="GITLAB"),
    )
    assert rows.results is not None
    assert rows.test_session["status"] == "TIMED_OUT"
    assert rows.test_session["provider"] == "GITLAB"
    assert folded(rows.results, "result_type status check_type") == [
        ("SKIPPED", "FLAKY", "SMTP"),
        ("SKIPPED", "passed", "QUIC"),
        (None, "PASSED", None),
    ]
    assert rows.drift.found == {
        ("test_session", "$.status"): (1, "TIMED_OUT"),
        ("test_session", "$.results[].status"): (2, "FLAKY"),
        ("test_session", "$.results[].resultType"): (2, "SKIPPED"),
        ("test_session", "$.results[].checkType"): (2, "QUIC"),
        ("test_session_summary", "$.provider"): (1, "GITLAB"),
    }
    assert_rows(rows)


def test_unknown_fields_at_every_level_are_counted_without_their_positions() -> None:
    value = copy.deepcopy(FULL_DETAIL)
    value["new"] = None
    value["metadata"]["new"] = {"deeper": [1]}
    value["metadata"]["github"]["new"] = "text"
    for one in value["results"]:
        one["new"] = one["newer"] = [1.5]
    summary = copy.deepcopy(FULL_ENTRY)
    summary["new"] = True
    summary["invoker"]["new"] = 1
    summary["started_at"] = "not startedAt"
    rows = session_rows(value, summary)
    assert rows.drift.found == {
        ("test_session", "$.new"): (1, "null"),
        ("test_session", "$.metadata.new"): (1, '{"deeper": [1]}'),
        ("test_session", "$.metadata.github.new"): (1, "text"),
        ("test_session", "$.results[].new"): (2, "[1.5]"),
        ("test_session", "$.results[].newer"): (2, "[1.5]"),
        ("test_session_summary", "$.new"): (1, "true"),
        ("test_session_summary", "$.invoker.new"): (1, "1"),
        ("test_session_summary", "$.started_at"): (1, "not startedAt"),
    }
    assert same(rows) == same(session_rows(FULL_DETAIL, FULL_ENTRY))
    group = copy.deepcopy(FULL_GROUP)
    group["new"] = 0
    for one in (*group["pwtMetadata"], *group["rootCauseAnalyses"]):
        one["new"] = ""
    group["rootCauseAnalyses"][0]["analysis"]["new"] = "part of the analysis, which is stored whole"
    assert group_rows(group).drift.found == {
        ("error_group", "$.new"): (1, "0"),
        ("error_group", "$.pwtMetadata[].new"): (3, ""),
        ("error_group", "$.rootCauseAnalyses[].new"): (2, ""),
    }


def test_fields_that_are_known_and_not_stored_are_no_drift() -> None:
    assert session_rows(FULL_DETAIL, FULL_ENTRY).drift.found == {}
    assert group_rows(FULL_GROUP).drift.found == {}


@pytest.mark.parametrize(
    "written",
    [
        r'"https:\/\/s3.example\/x?X-Amz-Signature=abc"',
        r'{"url": "https:\/\/s3.example\/x?X-Amz-Signature=abc"}',
        r'["\u0068ttps:\u002f\u002fs3.example\u003fX-Amz-Signature=abc"]',
    ],
)
def test_drift_shows_no_signed_url_however_it_is_written(written: str) -> None:
    body = json.dumps(detail())[:-1] + f', "asset": {written}}}'
    rows = normalize_test_session(documents.read(body.encode()), test_session_id=SESSION, account_id=None)
    assert rows.drift.found == {("test_session", "$.asset"): (1, "a URL that may be signed")}


def test_what_a_document_no_longer_tells_stays_only_where_the_list_had_told_it() -> None:
    before = {"name": "old", "branch_name": "main", "stopped_at": STOPPED}
    value = {name: of for name, of in detail().items() if name not in ("name", "metadata")}
    listed = session_rows(value, held=before).test_session
    by_id = session_rows(value, held=before | {"summary_sha256": None}).test_session
    assert (listed["name"], listed["branch_name"]) == ("old", "main")
    assert (by_id["name"], by_id["branch_name"]) == (None, None), "as in a warehouse that never saw the old one"


def test_drift_fits_its_columns_whatever_the_field_is_called() -> None:
    name = "n\x00\ud800" + "x" * 1000
    rows = session_rows(detail(**{name: "e\x00\udfff" + "y" * 1000}, **{"": ["\x00"], "a.b[0]": 1, "\U0001f600": 2}))
    assert rows.drift.found == {
        ("test_session", "$.n\ufffd\ufffd" + "x" * 495): (1, "e\ufffd\ufffd" + "y" * 197),
        ("test_session", "$."): (1, json.dumps(["\ufffd"])),
        ("test_session", "$.a.b[0]"): (1, "1"),
        ("test_session", "$.\U0001f600"): (1, "2"),
    }
    assert_rows(rows)


AWKWARD = "a\x00b\ud800c\udfff\u00e9\U0001f600\x01\u2028"
STORED = "a\ufffdb\ufffdc\ufffd\u00e9\U0001f600\x01\u2028"


@pytest.mark.parametrize(
    ("which", "field"),
    [(p.values[0], p.values[1]) for p in EVERY_FIELD if p.values[2] in ("text", "needed text", "text or integer")],
)
def test_nul_and_lone_surrogates_are_replaced_in_every_text(which: str, field: str) -> None:
    rows = normalize_as(which, with_value(DOCUMENTS[which][0], field, AWKWARD))
    assert_rows(rows)
    stored = [value for row in every_row(rows) for value in dict(row).values()] + [
        e for _, e in rows.drift.found.values()
    ]
    hidden_by_the_detail = which == "entry" and field in FROM_BOTH
    assert (STORED in stored) is not hidden_by_the_detail


def test_nul_and_lone_surrogates_are_replaced_inside_of_json_and_lists() -> None:
    rows = group_rows(
        {
            "id": GROUP,
            "environments": ["\x00", "\ud800", "fine"],
            "pwtMetadata": [{"suitePath": [AWKWARD]}],
            "rootCauseAnalyses": [
                {"analysis": {AWKWARD: [AWKWARD], "classification": AWKWARD, "codeFix": [AWKWARD]}}
            ],
        }
    )
    assert rows.environments == ["\ufffd", "fine"]
    assert rows.playwright_tests[0]["suite_path"] == [STORED]
    analysis = rows.root_cause_analyses[0]
    assert analysis["analysis"] == {STORED: [STORED], "classification": STORED, "codeFix": [STORED]}
    assert analysis["classification"] == STORED
    assert json.loads(analysis["code_fix"]) == [STORED]
    assert_rows(rows)


@pytest.mark.parametrize("number", [0, 7, -1, 12345678901234567890, 10**30, 10**298])
def test_numbers_where_text_is_promised_become_text(number: int) -> None:
    for value in ways(detail(metadata={"github": {"runId": number, "runAttempt": number}})):
        row = session_rows(value).test_session
        assert (row["github_run_id"], row["github_run_attempt"]) == (str(number), str(number))
    for value in ways({"id": GROUP, "pwtMetadata": [{"specId": number}]}):
        assert group_rows(value).playwright_tests[0]["spec_id"] == str(number)


ENORMOUS = {
    "300 digits": "1" + "0" * 299,
    "4000 digits": "1" + "0" * 3999,
    "4301 digits": "1" + "0" * 4300,
    "50001 digits": "1" + "0" * 50_000,
    "1e400": "1e400",
    "-1e400": "-1e400",
}
A_RESULT = json.dumps({"testSessionResultId": id_of("r"), "status": "PASSED"})[1:-1]


@pytest.mark.parametrize("number", ENORMOUS)
@pytest.mark.parametrize(
    ("template", "path"),
    [
        ('"timeElapsed": NUMBER', "$.timeElapsed"),
        ('"results": [{RESULT}, {RESULT, "responseTime": NUMBER}]', "$.results[1].responseTime"),
        ('"metadata": {"github": {"runId": NUMBER}}', "$.metadata.github.runId"),
        ('"name": NUMBER', "$.name"),
    ],
    ids=["number", "number of a result", "text or integer", "text"],
)
@pytest.mark.parametrize("more", ["", ', "new": 1', r', "new": "\u0000"'], ids=["plain", "unknown", "escape"])
def test_enormous_numbers_end_as_payload_error_or_as_rows(number: str, template: str, path: str, more: str) -> None:
    fields = template.replace("RESULT", A_RESULT).replace("NUMBER", ENORMOUS[number])
    body = f"{json.dumps(detail())[:-1]}, {fields}{more}}}"

    def work() -> TestSessionRows:
        return normalize_test_session(documents.read(body.encode()), test_session_id=SESSION, account_id=None)

    ended = outcome(work)
    if isinstance(ended, PayloadError):
        assert ended.json_path == path
    else:
        assert number in ("300 digits", "4000 digits")
        assert_rows(ended)


@pytest.mark.parametrize("number", [*ENORMOUS, "1e-400", "-0", "-0.0", "1E5"])
@pytest.mark.parametrize("around", ["NUMBER", "[[NUMBER]]", r'{"\u0000": NUMBER}'])
@pytest.mark.parametrize(
    "template",
    [
        '"rootCauseAnalyses": [{"analysis": VALUE}]',
        '"rootCauseAnalyses": [{"analysis": {"classification": VALUE}}]',
        '"rootCauseAnalyses": [{"userContext": VALUE}]',
        '"new": VALUE',
    ],
)
def test_awkward_numbers_in_places_of_any_type_end_as_payload_error_or_as_rows(
    number: str, around: str, template: str
) -> None:
    value = template.replace("VALUE", around).replace("NUMBER", ENORMOUS.get(number, number))
    body = f'{{"id": "{GROUP}", {value}}}'
    ended = outcome(lambda: normalize_error_group(documents.read(body.encode()), error_group_id=GROUP))
    if isinstance(ended, PayloadError):
        assert number in ENORMOUS
        assert "out of range" in ended.reason
    else:
        assert_rows(ended)


def stack_left(frames: int, work: Callable[[], Any]) -> Any:
    """Work with only so many frames left before Python's limit."""
    used, frame = 0, sys._getframe()
    while frame.f_back is not None:
        used, frame = used + 1, frame.f_back
    sink = sys.getrecursionlimit() - used - frames

    def down(levels: int) -> Any:
        return work() if levels <= 0 else down(levels - 1)

    return down(sink)


def nested(depth: int, kind: str = "array", inside: str = "1") -> str:
    return ("[" if kind == "array" else '{"a":') * depth + inside + ("]" if kind == "array" else "}") * depth


@pytest.mark.parametrize("kind", ["array", "object"])
@pytest.mark.parametrize("inside", ["1", r'"\u0000"'], ids=["plain", "escape"])
def test_an_analysis_of_a_sane_depth_is_stored_and_a_deeper_one_is_null_and_drift(kind: str, inside: str) -> None:
    def stored(depth: int) -> tuple[Any, Any]:
        body = (
            f'{{"id": "{GROUP}", "rootCauseAnalyses": [{{"analysis": {nested(depth, kind, inside)}, "model": "m"}}]}}'
        )
        rows = normalize_error_group(documents.read(body.encode()), error_group_id=GROUP)
        assert_rows(rows)
        assert rows.root_cause_analyses[0]["model"] == "m"
        return rows.root_cause_analyses[0]["analysis"], rows.drift.found

    sane, drift = stored(64)
    assert sane is not None
    assert drift == {}
    stack_left(150, lambda: json.dumps(sane))
    for depth in (65, 200, 400):
        analysis, drift = stored(depth)
        assert analysis is None
        ((key, (count, example)),) = drift.items()
        assert key == ("error_group", "$.rootCauseAnalyses[].analysis")
        assert count == 1
        assert example.startswith('{"a"' if kind == "object" else "[[")


@pytest.mark.parametrize("depth", [*range(300, 900, 50), *range(900, 1000, 2), 10_000])
@pytest.mark.parametrize(
    "template",
    [
        '"new": DEEP',
        '"metadata": {"github": {"new": DEEP}}',
        '"results": [{RESULT, "new": DEEP}]',
    ],
    ids=["session", "github", "result"],
)
def test_unknown_fields_of_any_depth_end_as_payload_error_or_as_drift(depth: int, template: str) -> None:
    fields = template.replace("RESULT", A_RESULT).replace("DEEP", nested(depth))
    body = f"{json.dumps(detail())[:-1]}, {fields}}}".encode()
    ended = outcome(lambda: normalize_test_session(documents.known(body), test_session_id=SESSION, account_id=None))
    if isinstance(ended, PayloadError):
        assert (ended.json_path, ended.reason) == ("$", "nested too deeply to be read")
    else:
        assert_rows(ended)
        assert [count for count, _ in ended.drift.found.values()] == [1]


@pytest.mark.parametrize("frames", [60, 100, 200])
@pytest.mark.parametrize(
    "template", ['"new": DEEP', '"metadata": {"github": {"new": DEEP}}'], ids=["session", "github"]
)
def test_an_unknown_field_never_fails_otherwise_however_little_stack_is_left(frames: int, template: str) -> None:
    seen = set()
    for depth in range(20, 220):
        fields = template.replace("RESULT", A_RESULT).replace("DEEP", nested(depth))
        value = documents.known(f"{json.dumps(detail())[:-1]}, {fields}}}".encode())
        work = functools.partial(normalize_test_session, value, test_session_id=SESSION, account_id=None)
        ended = stack_left(frames, functools.partial(outcome, work))
        seen.add(type(ended))
        if isinstance(ended, TestSessionRows):
            assert_rows(ended)
    assert seen == {TestSessionRows, PayloadError}, "the depths cover the edge"


@pytest.mark.parametrize("analysis", ["a string", "", 7, 1.5, True, False, [], [{"classification": "x"}], {}])
def test_an_analysis_that_is_no_object_is_stored_as_it_is(analysis: Json) -> None:
    (row,) = group_rows({"id": GROUP, "rootCauseAnalyses": [{"analysis": analysis}]}).root_cause_analyses
    assert row["analysis"] == analysis
    assert [row[name] for name in ("classification", "user_impact", "root_cause", "code_fix")] == [None] * 4


def test_parts_of_an_analysis_that_are_no_text_are_stored_as_json() -> None:
    analysis = {"classification": ["a", "\u00e9"], "userImpact": {"b": 1}, "rootCause": 0, "codeFix": None}
    (row,) = group_rows({"id": GROUP, "rootCauseAnalyses": [{"analysis": analysis}]}).root_cause_analyses
    assert [row[name] for name in ("classification", "user_impact", "root_cause", "code_fix")] == [
        '["a", "\u00e9"]',
        '{"b": 1}',
        "0",
        None,
    ]


def test_environments_are_a_set_of_names_that_fit_into_a_key() -> None:
    long = "e" * 600
    names = ["b", "a", "b", "", "", long, long + "x", "B", "\u00e9" * 501]
    rows = group_rows({"id": GROUP, "environments": names})
    assert rows.environments == ["b", "a", "", "e" * 500, "B", "\u00e9" * 500]
    assert group_rows({"id": GROUP, "environments": None}).environments == []


def test_empty_and_very_long_texts_are_stored_as_they_are() -> None:
    for text in ("", "x" * 100_000):
        rows = session_rows(detail(name=text, metadata={"branchName": text}, results=[result("1", name=text)]))
        assert rows.results is not None
        assert rows.results[0]["check_name"] == rows.test_session["name"] == rows.test_session["branch_name"] == text


def test_a_field_that_is_written_twice_has_its_last_value() -> None:
    for more in ("", ', "new": 1', r', "new": "\u0000"'):
        body = json.dumps(detail(name="first"))[:-1] + f', "name": "last"{more}}}'
        rows = normalize_test_session(documents.read(body.encode()), test_session_id=SESSION, account_id=None)
        assert rows.test_session["name"] == "last"


def test_an_integer_where_a_fraction_may_stand_is_the_same_number() -> None:
    for value in ways(detail(timeElapsed=5, results=[result("1", responseTime=0)])):
        rows = session_rows(value)
        assert rows.results is not None
        assert isinstance(rows.test_session["time_elapsed_ms"], float)
        assert isinstance(rows.results[0]["response_time_ms"], float)


# --- entries of lists ---------------------------------------------------------------------------------------


def test_an_entrys_key_is_its_id_in_lower_case_and_its_creation_time() -> None:
    account_id = FROM_THE_LIST["account_id"]
    assert normalize.entry_key(document(FULL_ENTRY)) == (SESSION, FROM_THE_LIST["created_at"], account_id)
    assert normalize.entry_key(document(FULL_GROUP)) == (GROUP, None, None)
    value = {"id": SESSION.upper(), "created_at": "2026-11-15T13:00:00+01:00", "new": "\ud800"}
    assert normalize.entry_key(document(value)) == (SESSION, STARTED, None)


@pytest.mark.parametrize("created_at", [None, 7, True, [], {}, "", "yesterday", "0001-01-01T00:00:00+01:00", "\x00"])
def test_an_entry_whose_creation_time_is_illegal_is_known_by_its_id(created_at: Json) -> None:
    assert normalize.entry_key(document(entry(created_at=created_at))) == (SESSION, None, None)


@pytest.mark.parametrize("value", [{}, {"id": None}, {"id": 7}, {"id": "no uuid"}, {"id": ""}, {"id": [SESSION]}])
def test_an_entry_without_a_usable_id_is_refused_with_its_place(value: Json) -> None:
    with pytest.raises(PayloadError) as caught:
        normalize.entry_key(document(value))
    assert caught.value.json_path == "$.id"


@pytest.mark.parametrize(
    "value", ["", "x", SESSION + "\n", SESSION.replace("-", "_"), "\u0130" * 36, "\uff11" + SESSION[1:]]
)
def test_an_id_of_ours_is_a_uuid_or_refused(value: str) -> None:
    assert documents.our_id(SESSION.upper(), "$.id") == SESSION
    with pytest.raises(PayloadError, match=r"^\$\.there: is not a UUID$"):
        documents.our_id(value, "$.there")


# --- laws of all rows ---------------------------------------------------------------------------------------


def every_row(rows: TestSessionRows | ErrorGroupRows) -> list[Row]:
    if isinstance(rows, TestSessionRows):
        return [rows.test_session, *(rows.results or ()), *(rows.executions or ())]
    names = [{"environment": name} for name in rows.environments]
    return [rows.error_group, *names, *rows.playwright_tests, *rows.root_cause_analyses]


def assert_fits(table: Table, row: Row) -> None:
    """The row has exactly the table's columns, each with a value that both databases take."""
    assert row.keys() == columns(table)
    for name, value in dict(row).items():
        column = table.c[name]
        where = f"{table.name}.{name}: {value!r:.100}"
        if value is None:
            assert column.nullable, where
            continue
        type_ = column.type
        if isinstance(type_, JSON):
            assert documents.storable(value) == value, where
            stack_left(150, functools.partial(json.dumps, value, allow_nan=False))
        elif isinstance(type_, tables.UtcTime):
            assert isinstance(value, datetime), where
            assert value.tzinfo is UTC, where
        elif isinstance(type_, Boolean):
            assert isinstance(value, bool), where
        elif isinstance(type_, Integer):
            assert type(value) is int, where
            assert 0 <= value < 2**31, where
        elif isinstance(type_, Double):
            assert type(value) is float, where
            assert value - value == 0, where
        else:
            assert isinstance(type_, String | Text), where
            assert_text(value)
            if type_.length == 36:
                assert str(uuid.UUID(value)) == value, where
            elif type_.length == 64:
                assert re.fullmatch("[0-9a-f]{64}", value), where


def assert_text(value: Any) -> None:
    assert type(value) is str
    assert "\x00" not in value
    value.encode()


def assert_unique(keys: Sequence[Any]) -> None:
    assert len(set(keys)) == len(keys)


def assert_rows(rows: TestSessionRows | ErrorGroupRows) -> None:
    for (kind, path), (occurrences, example) in rows.drift.found.items():
        assert kind in ("test_session", "test_session_summary", "error_group")
        assert_text(path)
        assert_text(example)
        assert not re.search(r"\[\d", path) or "new" not in path
        assert len(path) <= 500
        assert len(example) <= 200
        assert occurrences >= 1
    if isinstance(rows, ErrorGroupRows):
        assert_fits(tables.error_groups, rows.error_group)
        assert_unique(rows.environments)
        for name in rows.environments:
            assert_text(name)
            assert len(name) <= 500
        for table, children in (
            (tables.error_group_playwright_tests, rows.playwright_tests),
            (tables.error_group_root_cause_analyses, rows.root_cause_analyses),
        ):
            assert [child["position"] for child in children] == list(range(1, len(children) + 1))
            for child in children:
                assert_fits(table, child)
        return
    assert_fits(tables.test_sessions, rows.test_session)
    assert rows.is_final is rows.test_session["is_final"]
    groups = rows.error_group_ids or []
    assert_unique(groups)
    assert_unique(rows.result_error_groups)
    for id_ in [*groups, *(id_ for pair in rows.result_error_groups for id_ in pair)]:
        assert str(uuid.UUID(id_)) == id_
    if rows.results is None:
        assert rows.executions is None
        assert rows.result_error_groups == []
        return
    assert rows.executions is not None
    for row in rows.results:
        assert_fits(tables.test_session_results, row)
    for execution in rows.executions:
        assert_fits(tables.check_executions, execution)
    ids = result_ids(rows.results)
    assert_unique(ids)
    assert {id_ for id_, _ in rows.result_error_groups} <= set(ids)
    positions = [row["position"] for row in rows.results]
    assert positions == sorted(set(positions))
    assert_grouping(rows.results, rows.executions)


# Arbitrary JSON, with the texts and numbers that hurt.
ANY_TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(
    [SESSION, GROUP, id_of("x").upper(), START, "", AWKWARD]
)
ANY_NUMBER = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**63, -(2**64), 10**298, 1e308, 5e-324, -0.0])
)
FIELD_NAMES = sorted({name.split(".")[-1] for _, fields in DOCUMENTS.values() for name, _ in fields})
ANY_JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELD_NAMES) | ANY_TEXT, inner, max_size=4)
    ),
    max_leaves=8,
)
FAST = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def places(value: Json) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@st.composite
def mutated(draw: st.DrawFn, legal: Json) -> Json:
    """A legal document after a few changes anywhere."""
    value = copy.deepcopy(legal)
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(value))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        what = draw(st.sampled_from(["replace", "delete", "insert", "repeat"]))
        if what == "replace":
            container[key] = draw(ANY_JSON)
        elif what == "delete":
            del container[key]
        elif isinstance(container, dict):
            name = draw(st.sampled_from(FIELD_NAMES) | ANY_TEXT)
            container[name] = draw(ANY_JSON) if what == "insert" else copy.deepcopy(container[key])
        else:
            container.insert(key, draw(ANY_JSON) if what == "insert" else copy.deepcopy(container[key]))
    return value


def rows_or_payload_error(which: str, value: Json) -> None:
    ended = outcome(lambda: normalize_as(which, value))
    if isinstance(ended, PayloadError):
        assert ended.json_path.startswith("$")
        assert ended.reason
        assert_text(str(ended))
    else:
        assert_rows(ended)


@settings(FAST, max_examples=300)
@given(st.sampled_from(sorted(DOCUMENTS)), ANY_JSON.filter(lambda value: value is not None))
def test_any_json_at_all_ends_as_rows_or_as_payload_error(which: str, value: Json) -> None:
    rows_or_payload_error(which, value)
    if isinstance(value, dict):
        id_ = GROUP if which == "group" else SESSION
        rows_or_payload_error(which, {**value, "testSessionId": id_, "id": id_})


@pytest.mark.parametrize("which", DOCUMENTS)
@settings(FAST, max_examples=400)
@given(data=st.data())
def test_any_change_of_a_legal_document_ends_as_rows_or_as_payload_error(which: str, data: st.DataObject) -> None:
    rows_or_payload_error(which, data.draw(mutated(DOCUMENTS[which][0])))


@settings(FAST, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["eu", "us", None]),
            st.sampled_from(["FINAL", "ATTEMPT", "PENDING", None]),
            st.sampled_from(["PASSED", "FAILED", "CANCELLED"]),
            st.sampled_from(["one", "two", None]),
            st.integers(0, 9),
        ),
        max_size=12,
    )
)
def test_every_row_belongs_to_exactly_one_execution_however_rows_are_mixed(specs: list[tuple[Any, ...]]) -> None:
    values = [
        result(str(id_), type_, status, checkId=id_of(check), runLocation=location)
        for check, location, type_, status, _, id_ in specs
    ]
    rows = session_rows(detail(results=values))
    assert_rows(rows)
    assert rows.results is not None
    assert [row["test_session_result_id"] for row in rows.results] == list(
        dict.fromkeys(value["testSessionResultId"] for value in values)
    )
    by_id = {id_of(str(id_)): sequence for *_, sequence, id_ in specs}
    for row in rows.results:
        sequence = by_id[row["test_session_result_id"]]
        row.sequence_id = None if sequence is None else id_of(sequence)
    executions = normalize.normalize_executions(rows.results, rows.test_session)
    assert_grouping(rows.results, executions)
    by_check: dict[str, list[Row]] = {}
    for row in rows.results:
        by_check.setdefault(row["check_id"], []).append(row)
    for execution in executions:
        members = by_check[execution["check_key"]]
        all_have_one = all(row["sequence_id"] for row in members)
        assert execution["grouped_by"] == ("sequence" if all_have_one else "inferred")
        if all_have_one:
            mine = {row["sequence_id"] for row in members if row["execution_no"] == execution["execution_no"]}
            assert len(mine) == 1
    again = normalize.normalize_executions(rows.results, rows.test_session)
    assert again == executions


# --- laws of documents as Checkly describes them ------------------------------------------------------------


@functools.cache
def description() -> dict[str, Any]:
    return dict(json.loads(DESCRIPTION.read_text("utf-8"))["components"]["schemas"])


IDS = st.sampled_from([id_of(str(number)) for number in range(8)]) | st.uuids().map(str)
TEXTS = st.text(max_size=6) | st.text(st.characters(), max_size=4) | st.sampled_from(["main", "eu", "\x00", "\ud83d"])
TIMES = st.one_of(
    st.datetimes().map(lambda time: time.isoformat() + "Z"),
    st.datetimes(
        datetime(2, 1, 1),  # noqa: DTZ001 - what hypothesis asks for
        datetime(9998, 12, 31),  # noqa: DTZ001
        timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    ).map(datetime.isoformat),
    st.integers(0, 59).map(lambda number: f"2026-11-15T12:00:{number:02}.{number}00z"),
)


@functools.cache
def documents_of(name: str) -> st.SearchStrategy[Json]:
    return legal(description()[name])


def legal(schema: Mapping[str, Any]) -> st.SearchStrategy[Json]:
    """Values that a schema of the official description allows, hard ones first."""
    if "$ref" in schema:
        return documents_of(schema["$ref"].rsplit("/", 1)[1])
    made = _legal(schema)
    return st.none() | made if schema.get("nullable") else made


def _legal(schema: Mapping[str, Any]) -> st.SearchStrategy[Json]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "string" if schema.get("format") == "uuid":
            return IDS | IDS.map(str.upper)
        case "string" if schema.get("format") == "date-time":
            return TIMES
        case "string":
            return TEXTS.filter(lambda text: len(text) >= schema.get("minLength", 0))
        case "number":
            return st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
        case "integer":
            return st.integers(schema["minimum"], 2**70)
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(legal(schema["items"]), max_size=6)
        case "object":
            fields = {name: legal(field) for name, field in schema["properties"].items()}
            needed = set(schema.get("required", ()))
            return st.fixed_dictionaries(
                {name: field for name, field in fields.items() if name in needed},
                optional={name: field for name, field in fields.items() if name not in needed},
            )
        case None:
            return ANY_JSON
    raise AssertionError(f"the description has a new kind of schema: {schema}")


def shuffled(value: Json, order: Callable[[list[Any]], list[Any]]) -> Json:
    if isinstance(value, dict):
        return {key: shuffled(value[key], order) for key in order(list(value))}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


@described
@settings(FAST, max_examples=250)
@given(data=st.data())
def test_every_test_session_that_checkly_describes_becomes_rows(data: st.DataObject) -> None:
    value = data.draw(documents_of("FindOneTestSessionResponse"))
    summary = data.draw(st.none() | documents_of("TestSessionListEntry"))
    value["testSessionId"] = SESSION.upper()
    if summary is not None:
        summary["id"] = SESSION
    rows = session_rows(value, summary)
    assert_rows(rows)
    assert set(rows.drift.found) <= {("test_session_summary", "$.provider")}
    assert (rows.results is None) is ("results" not in value)
    if rows.results is not None:
        last = {one["testSessionResultId"].lower(): one for one in value["results"]}
        assert result_ids(rows.results) == list(last)
        types = Counter(one.get("resultType") for one in last.values())
        assert sum(row["retries"] for row in rows.executions or ()) == types["ATTEMPT"]
    assert session_rows(value, summary) == rows
    other = shuffled(value, lambda keys: keys[::-1])
    other_summary = shuffled(summary, sorted)
    assert same(session_rows(other, other_summary)) == same(rows)
    slow = session_rows({**value, "new": "\ud83d\ude00"}, summary)
    assert same(slow) == same(rows)
    # Where the entry is not at hand, the row that it once filled tells the same.
    held = session_rows(value, held=rows.test_session)
    assert same(held)[:3] == same(rows)[:3]


@described
@settings(FAST, max_examples=200)
@given(data=st.data())
def test_every_error_group_that_checkly_describes_becomes_rows(data: st.DataObject) -> None:
    value = data.draw(documents_of("TestSessionErrorGroup"))
    value["id"] = GROUP
    rows = group_rows(value)
    assert_rows(rows)
    assert rows.drift.found == {}
    assert group_rows(value) == rows
    assert group_rows(shuffled(value, lambda keys: keys[::-1])) == rows
    assert set(rows.environments) == {documents.storable(name) for name in value["environments"] or ()}
    assert len(rows.root_cause_analyses) == len(value.get("rootCauseAnalyses", ()))


@described
@settings(FAST, max_examples=200)
@given(data=st.data())
def test_every_result_that_checkly_describes_becomes_columns(data: st.DataObject) -> None:
    value = data.draw(documents_of("FindOneTestSessionResultResponse"))
    value["testSessionResultId"] = value["id"] = SESSION.upper()
    reduced = normalize.reduced_result(document(value))
    assert normalize.reduced_result(reduced).body == reduced.body
    kept = json.loads(reduced.body)
    assert not [name for name, one in kept.items() if isinstance(one, dict)]
    rows = normalize.normalize_result_detail(reduced, test_session_result_id=SESSION)
    assert rows.columns.keys() == NO_DETAILS.keys() - {"details_fetched_at"}
    assert set(rows.drift.found) <= {("test_session_result", "$.attempts")}
    sequence = value.get("sequenceId")
    assert rows.columns["sequence_id"] == (sequence and sequence.lower())
    assert rows.columns["is_cancelled"] == value["isCancelled"]


@described
def test_every_field_that_checkly_describes_is_known() -> None:
    def names(type_: Any) -> set[str]:
        return {field.encode_name for field in msgspec.structs.fields(type_)}

    for name, type_ in {
        "FindOneTestSessionResponse": models.Detail,
        "TestSessionMetadata": models.Metadata,
        "TestSessionGitHubMetadata": models.GitHub,
        "TestSessionResult": models.Result,
        "FindOneTestSessionResultResponse": models.ResultDetail,
        "TestSessionListEntry": models.Summary,
        "TestSessionListEntryInvoker": models.Invoker,
        "TestSessionErrorGroup": models.ErrorGroup,
        "TestSessionErrorGroupPlaywrightMetadata": models.PlaywrightTest,
        "TestSessionErrorGroupRootCauseAnalysis": models.RootCauseAnalysis,
    }.items():
        sections = {field for field in description()[name]["properties"] if field.endswith("CheckResult")}
        assert names(type_) == set(description()[name]["properties"]) - sections, name

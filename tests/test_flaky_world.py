"""Which checks are flaky: the answer is the truth, however Checkly lists the results of its runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from sqlalchemy import text

from etl import pipeline, schema, warehouse
from etl.database import Database, now
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from tests.conftest import Program, content, environment, rows, scalar
from tests.documents import Json, detail, entry, result, uuid
from tests.test_migrations import alembic

Make = Callable[..., Etl]
PLACES = ("eu-central-1", "us-east-1", "ap-south-1")
EXECUTIONS, RETRIED = 20, 12


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with what the test puts into it."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        yield serving


@pytest.fixture
def make(make_etl: Make, checkly: Simulator) -> Make:
    """The pipeline over `checkly`."""

    def build(**options: Any) -> Etl:
        return make_etl(**{"CHECKLY_API_URL": checkly.url, "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d", **options})

    return build


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def put(checkly: Simulator, number: int, started_at: datetime, results: list[Json]) -> None:
    times = {"startedAt": iso(started_at), "stoppedAt": iso(started_at + timedelta(minutes=5))}
    created = {"created_at": iso(started_at), "updated_at": times["stoppedAt"]}
    checkly.put_test_session(detail(number, results=results, **times), entry(number, **times, **created))


def tries(number: int, started_at: datetime, places: list[str], **fields: Any) -> list[Json]:
    """An execution that passes at its last try, as its results; each try in its place."""
    rows = []
    for index, place in enumerate(places):
        is_last = index == len(places) - 1
        begins = started_at + timedelta(seconds=20 * index)
        more = {
            "testSessionResultId": uuid(0xA0000 + 10 * number + index),
            "resultType": "FINAL" if is_last else "ATTEMPT",
            "status": "PASSED" if is_last else "FAILED",
            "hasFailures": not is_last,
            "runLocation": place,
            "startedAt": iso(begins),
            "stoppedAt": iso(begins + timedelta(seconds=10)),
        }
        rows.append(result(1, **{**more, **fields}))
    return rows


LISTINGS: dict[str, Callable[[list[Json]], list[Json]]] = {
    "oldest first": lambda results: results,
    "newest first": lambda results: results[::-1],
    "shuffled": lambda results: random.Random(7).sample(results, len(results)),
}


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("retries_are_elsewhere", [False, True], ids=["same place", "elsewhere"])
def test_retry_flakiness_is_the_truth_in_any_order(
    make: Make, checkly: Simulator, database: Database, listing: str, retries_are_elsewhere: bool
) -> None:
    """20 executions, 12 of which passed at a retry: 0 were counted, and 12 phantoms, where FINAL came first."""
    with database.reading() as connection:
        today = now(connection)
    for number in range(1, EXECUTIONS + 1):
        started_at = today - timedelta(days=2, minutes=10 * number)
        places = [PLACES[0]]
        if number <= RETRIED:
            places = list(PLACES[: 2 + number % 2]) if retries_are_elsewhere else [PLACES[0]] * (2 + number % 2)
        put(checkly, number, started_at, LISTINGS[listing](tries(number, started_at, places)))
    assert pipeline.sync(make()).word == "ok"
    found = rows(database, "SELECT executions, decided, retry_flaky, retry_flaky_rate, ambiguous FROM v_flaky_checks")
    truth = {"executions": EXECUTIONS, "decided": EXECUTIONS, "retry_flaky": RETRIED, "ambiguous": 0}
    assert found == [truth | {"retry_flaky_rate": RETRIED / EXECUTIONS}]
    retries = sum(1 + number % 2 for number in range(1, RETRIED + 1))
    assert scalar(database, "SELECT sum(retries) FROM check_executions") == retries


@pytest.mark.parametrize("which", ["none", "failed", "all"])
def test_twins_are_marked_or_told_apart_by_what_was_read(
    make: Make, checkly: Simulator, database: Database, which: str
) -> None:
    """Two files of one name, one of which always fails: flips 11 of 11 and commit flakiness 6 of 6 were counted."""
    with database.reading() as connection:
        today = now(connection)
    for number in range(1, 7):
        started_at = today - timedelta(days=2, minutes=10 * number)
        results = []
        for twin, (path, status) in enumerate((("a/login.spec.ts", "PASSED"), ("b/login.spec.ts", "FAILED"))):
            name = {"name": "login.spec.ts", "checkType": "PLAYWRIGHT", "checkId": None}
            (row,) = tries(2 * number + twin, started_at, [PLACES[0]], status=status, **name)
            results.append(row)
            told = {**row, "filePath": path, "sequenceId": uuid(0x5E00 + 2 * number + twin)}
            checkly.put_result(uuid(number), row["testSessionResultId"], told)
        put(checkly, number, started_at, results)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS=which))
    assert outcome.word == "ok"
    details = [request for request in checkly.requests if "/results/" in request.path]
    assert len(details) == (0 if which == "none" else 12), "twins are read in either mode"

    found = rows(database, "SELECT * FROM v_flaky_checks ORDER BY check_key")
    assert [row["flips"] for row in found] == [0] * len(found)
    assert [row["commit_flaky"] for row in found] == [0] * len(found)
    streaks = scalar(database, "SELECT count(*) FROM v_failure_streaks")
    if which == "none":
        assert [(row["executions"], row["ambiguous"], row["comparable"], row["commits"]) for row in found] == [
            (12, 12, 0, 0)
        ]
        assert rows(database, "SELECT ambiguous FROM v_checks") == [{"ambiguous": 12}]
        assert streaks == 0
        return
    assert [(row["executions"], row["ambiguous"], row["comparable"], row["commits"]) for row in found] == [
        (6, 0, 5, 1),
        (6, 0, 5, 1),
    ]
    assert [row["check_key"].rpartition(":")[2] for row in found] == ["a/login.spec.ts", "b/login.spec.ts"]
    assert streaks == 1


def test_in_failed_mode_each_retried_check_is_grouped_for_certain(
    make: Make, checkly: Simulator, database: Database
) -> None:
    """Inferred, a retry in the same place belongs to who failed first; the sequences say otherwise."""
    with database.reading() as connection:
        started_at = now(connection) - timedelta(days=2)
    first = tries(1, started_at, [PLACES[0]] * 2)
    second = tries(2, started_at + timedelta(seconds=5), [PLACES[0]] * 2)
    passed = tries(3, started_at, [PLACES[1]], checkId=uuid(0xC0FFEE))
    elsewhere = tries(4, started_at, [PLACES[2]])
    for rows_, sequence in ((first, 1), (second, 2), (passed, 3), (elsewhere, 4)):
        for row in rows_:
            checkly.put_result(uuid(1), row["testSessionResultId"], {**row, "sequenceId": uuid(0x5E00 + sequence)})
    put(checkly, 1, started_at, [*first, *second, *passed, *elsewhere])
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="failed"))
    assert outcome.word == "ok"
    asked = {request.path.rpartition("/")[2] for request in checkly.requests if "/results/" in request.path}
    # All of the check that was retried, in the place without a retry as well: one unknown leaves a check inferred.
    assert asked == {row["testSessionResultId"] for row in [*first, *second, *elsewhere]}
    found = rows(database, "SELECT grouped_by, retries, is_retry_flaky FROM check_executions ORDER BY execution_no")
    assert [(row["grouped_by"], row["retries"], bool(row["is_retry_flaky"])) for row in found] == [
        ("sequence", 1, True),
        ("sequence", 1, True),
        ("inferred", 0, False),
        ("sequence", 0, False),
    ]


# --- warehouses of before -----------------------------------------------------------------------------------


@pytest.fixture
def etl(program: Program, checkly: Simulator, warehouse_url: str) -> Program:
    """checkly-etl with that Checkly."""
    program.env = environment(checkly.url, warehouse_url) | {"CHECKLY_ETL_EXPORT__LOOKBACK": "3000d"}
    return program


def test_an_old_warehouse_is_brought_to_the_new_rule_by_a_replay(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    started_at = datetime(2026, 11, 14, 10, tzinfo=UTC)
    for number in (1, 2):
        put(checkly, number, started_at, tries(number, started_at, [PLACES[0]] * 2)[::-1])
    etl("sync")
    right = content(database)
    assert {row["retries"] for row in rows(database, "SELECT retries FROM check_executions")} == {1}

    alembic(database, command.downgrade, "0005")
    with database.writing() as connection:
        # As it was folded before: the FINAL, listed first, and an attempt that was an execution of its own.
        connection.execute(text("UPDATE check_executions SET retries = 0, is_retry_flaky = FALSE, retry_cost_ms = 0"))
        # One of them has no stored document any more.
        connection.execute(text("DELETE FROM etl_payloads WHERE test_session_id = :id"), {"id": uuid(2)})
    run = etl("migrate")
    assert "now run checkly-etl replay: attempts and their FINAL" in run.out
    status = etl("status")
    assert "replay due     run checkly-etl replay: " in status.out
    assert len(etl("status", "--json").json["replay_due"]) == 1

    stopped = pipeline_that_stops(etl, database)
    assert database.read(warehouse.replay_due) != [], stopped
    run = etl("replay")
    assert run.code == 0
    found = content(database)
    assert found["check_executions"] == right["check_executions"]
    assert found["test_session_results"] == right["test_session_results"]
    assert "replay due" not in etl("status").out
    assert etl("status", "--json").json["replay_due"] == []
    assert "now run" not in etl("migrate").out


def pipeline_that_stops(etl: Program, database: Database) -> str:
    """A replay that is stopped before its end."""
    from etl import config

    stopping = Etl(config.load(None, etl.env), database)
    stopping.stop.set()
    return pipeline.replay(stopping).word


def test_an_empty_warehouse_needs_no_replay(database: Database) -> None:
    alembic(database, command.downgrade, "0005")
    schema.migrate(database)
    assert database.read(warehouse.replay_due) == []

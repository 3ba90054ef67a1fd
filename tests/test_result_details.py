"""Result details: which are read, what becomes of them, and that no session ever waits for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from etl import documents, normalize, pipeline, session_queue, warehouse
from etl.database import Database
from etl.pipeline import Etl, Outcome
from etl.simulator import Simulator, World
from etl.tables import metadata
from etl.warehouse import DETAIL_COLUMNS
from tests.conftest import Program, content, environment, rows, scalar
from tests.documents import Json, detail, entry, result, running, uuid

Make = Callable[..., Etl]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
DETAILS = ", ".join(DETAIL_COLUMNS)
SIGNED = "https://assets.simulator.invalid/a/b.png?X-Amz-Algorithm=x&X-Amz-Signature=abc"


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with what the test puts into it."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        yield serving


@pytest.fixture
def make(make_etl: Make, checkly: Simulator, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The pipeline over `checkly`, with all details and short retries."""
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.01)

    def build(**options: Any) -> Etl:
        fixed = {
            "CHECKLY_API_URL": checkly.url,
            "CHECKLY_ETL_EXPORT__CONCURRENCY": "4",
            "CHECKLY_ETL_EXPORT__RESULT_DETAILS": "all",
            # The documents are of November 2026, whatever today is.
            "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d",
        }
        return make_etl(**{**fixed, **options})

    return build


def path_of(session: int, number: int) -> str:
    return f"/v1/test-sessions/{uuid(session)}/results/{uuid(0xA000 + number)}"


def calls(simulator: Simulator) -> list[str]:
    """Paths of the calls for details, in order."""
    return [request.path for request in simulator.requests if "/results/" in request.path]


def told(row: Json, **fields: Any) -> Json:
    """The detail of a result; `fields` replace or add."""
    return {
        **row,
        "id": row["testSessionResultId"],
        "privateLocationId": uuid(0xF00D),
        "filePath": "__checks__/home.spec.ts",
        "isCancelled": False,
        "overMaxResponseTime": True,
        "attempts": 2,
        "sequenceId": uuid(0x5E0),
        "scheduleError": "too late",
        "traceId": "7ace",
        "created_at": "2026-11-14T10:00:00.000Z",
        "updated_at": None,
        "browserCheckResult": {"jobAssets": [SIGNED], "jobLog": [{"msg": "secret of a customer"}]},
    } | fields


def put(checkly: Simulator, number: int, results: list[Json], **fields: Any) -> None:
    """A session with these results, and its list entry."""
    checkly.put_test_session(detail(number, results=results, **fields), entry(number, **fields))


def sequenced(checkly: Simulator, number: int, *specs: tuple[int, str, str, int | None]) -> list[Json]:
    """A session of one check: (number, type, status, sequence) a result."""
    check = {"checkId": uuid(0xC001), "name": "check 1"}
    results = [result(n, resultType=type_, status=status, **check) for n, type_, status, _ in specs]
    put(checkly, number, results)
    for row, (*_, sequence) in zip(results, specs, strict=True):
        sequence_id = None if sequence is None else uuid(0x5E0 + sequence)
        checkly.put_result(uuid(number), row["testSessionResultId"], told(row, sequenceId=sequence_id))
    return results


INTERLEAVED = (
    (1, "ATTEMPT", "FAILED", 1),
    (2, "ATTEMPT", "FAILED", 2),
    (3, "FINAL", "PASSED", 2),
    (4, "FINAL", "FAILED", 1),
)


def executions(database: Database) -> list[tuple[Any, ...]]:
    found = rows(
        database,
        "SELECT grouped_by, test_session_result_id, verdict, retries FROM check_executions ORDER BY execution_no",
    )
    return [(row["grouped_by"], str(row["test_session_result_id"]), row["verdict"], row["retries"]) for row in found]


def numbers(database: Database) -> list[int | None]:
    """The execution of each result, in the payload's order."""
    return [row["execution_no"] for row in rows(database, "SELECT * FROM test_session_results ORDER BY position")]


BY_ORDER = [("inferred", uuid(0xA003), "PASSED", 2), ("inferred", uuid(0xA004), "FAILED", 0)]
BY_SEQUENCE = [("sequence", uuid(0xA004), "FAILED", 1), ("sequence", uuid(0xA003), "PASSED", 1)]


def due(database: Database) -> list[tuple[str, int]]:
    """What is still to be read: result and attempts."""
    found = rows(database, "SELECT * FROM etl_result_details_due ORDER BY test_session_id, test_session_result_id")
    return [(str(row["test_session_result_id"]), row["attempts"]) for row in found]


def saved(outcome: Outcome) -> int:
    return outcome.counters["test_sessions_saved"]


def enqueue(database: Database, *sessions: int) -> None:
    database.run(lambda c: session_queue.enqueue(c, [uuid(number) for number in sessions]))


def details_held(database: Database) -> int:
    return int(scalar(database, "SELECT count(details_fetched_at) FROM test_session_results"))


# --- which ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["none", "failed", "all"])
def test_each_setting_costs_exactly_its_calls(
    make_etl: Make, simulator: Simulator, small_world: World, database: Database, which: str
) -> None:
    wanted = []
    for _, id_ in small_world.timetable():
        document = small_world.detail(id_)
        results = document["results"] if document else ()
        retried = {(row.get("checkId"), row["name"]) for row in results if row["resultType"] == "ATTEMPT"}
        for row in results:
            is_retried = (row.get("checkId"), row["name"]) in retried
            has_failed = row["hasFailures"] or row["hasErrors"] or row["status"] == "FAILED"
            is_wanted = which == "all" or (which == "failed" and (has_failed or is_retried))
            if row["resultType"] != "PENDING" and is_wanted:
                wanted.append(f"/v1/test-sessions/{id_}/results/{row['testSessionResultId']}")

    outcome = pipeline.sync(make_etl(CHECKLY_ETL_EXPORT__RESULT_DETAILS=which))

    assert outcome.word == "ok"
    assert sorted(calls(simulator)) == sorted(wanted)
    assert (which == "none") == (not wanted)
    assert outcome.counters["api_requests"] == len(simulator.requests)
    assert details_held(database) == len(wanted)
    assert due(database) == []
    simulator.clear_requests()
    pipeline.sync(make_etl(CHECKLY_ETL_EXPORT__RESULT_DETAILS=which))
    assert len(simulator.requests) == 1, "the list alone"


def test_both_engines_hold_the_same_details(
    new_warehouse: Callable[[str], str], small_world: World, make_etl_at: Callable[[str, str], Etl]
) -> None:
    found = []
    with Simulator(small_world, rate_limit=0) as simulator:
        for engine in ("sqlite", "postgresql"):
            etl = make_etl_at(simulator.url, new_warehouse(engine))
            etl.settings = with_details(etl)
            assert pipeline.sync(etl).word == "ok"
            found.append(content(etl.database))
            etl.database.close()
    for table in ("test_session_results", "check_executions", "etl_payloads"):
        assert found[0][table] == found[1][table], table


def with_details(etl: Etl) -> Any:
    import msgspec

    return msgspec.structs.replace(
        etl.settings, export=msgspec.structs.replace(etl.settings.export, result_details="all")
    )


def test_what_a_detail_tells_reaches_the_columns_of_its_result_and_no_other(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1, status="FAILED"), result(2)])
    checkly.put_result(uuid(1), uuid(0xA001), told(result(1), status="PASSED"))
    assert pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="failed")).word == "ok"
    one, other = rows(database, f"SELECT {DETAILS}, status FROM test_session_results ORDER BY position")
    assert one.pop("details_fetched_at") is not None
    assert {name: str(value) if "id" in name.split("_") else value for name, value in one.items()} == {
        "sequence_id": uuid(0x5E0),
        "attempts": 2,
        "file_path": "__checks__/home.spec.ts",
        "private_location_id": uuid(0xF00D),
        "over_max_response_time": True,
        "is_cancelled": False,
        "schedule_error": "too late",
        "trace_id": "7ace",
        "status": "FAILED",  # the session's document tells that
    }
    assert {value for name, value in other.items() if name != "status"} == {None}


def test_a_detail_that_says_who_it_is_by_its_alias_alone_is_taken(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1)])
    document = told(result(1))
    del document["testSessionResultId"]
    checkly.put_result(uuid(1), uuid(0xA001), document)
    assert pipeline.sync(make()).word == "ok"
    assert scalar(database, "SELECT trace_id FROM test_session_results") == "7ace"


def test_of_a_running_session_only_results_that_have_ended_are_read_and_each_once(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(running(1), entry(1, status="RUNNING", stoppedAt=None))
    pipeline.sync(make())
    assert calls(checkly) == [path_of(1, 1)]
    before = rows(database, f"SELECT {DETAILS} FROM test_session_results WHERE position = 1")

    checkly.put_test_session(detail(1), None)
    pipeline.sync(make(clock_offset=timedelta(minutes=2)))
    assert calls(checkly) == [path_of(1, 1), path_of(1, 2)]
    assert rows(database, f"SELECT {DETAILS} FROM test_session_results WHERE position = 1") == before
    assert details_held(database) == 2
    assert {name for name, *_ in executions(database)} == {"sequence"}


def test_what_was_never_run_is_not_asked_for(make: Make, checkly: Simulator) -> None:
    put(checkly, 1, [result(1), result(2, resultType="PENDING", status="CANCELLED"), result(3, resultType=None)])
    pipeline.sync(make())
    assert sorted(calls(checkly)) == [path_of(1, 1), path_of(1, 3)]


def test_turning_it_on_reads_nothing_of_the_past_until_a_backfill_is_forced(
    make: Make, checkly: Simulator, database: Database
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="none"))
    before = scalar(database, "SELECT exported_at FROM test_sessions")
    for command in (pipeline.sync, lambda etl: pipeline.backfill(etl, since=LONG_AGO, until=None)):
        assert command(make()).word == "ok"
        assert calls(checkly) == []
    assert scalar(database, "SELECT exported_at FROM test_sessions") == before

    outcome = pipeline.backfill(make(), since=LONG_AGO, until=None, force=True)
    assert (outcome.word, saved(outcome), len(calls(checkly))) == ("ok", 0, 4)
    assert executions(database) == BY_SEQUENCE
    assert scalar(database, "SELECT exported_at FROM test_sessions") > before


def test_an_unchanged_reload_calls_nothing_and_writes_nothing(
    make: Make, checkly: Simulator, database: Database
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make())
    written = rows(database, "SELECT * FROM test_sessions"), rows(database, "SELECT * FROM etl_payloads")
    before = content(database)
    checkly.clear_requests()
    outcome = pipeline.backfill(make(), since=LONG_AGO, until=None, force=True)
    assert outcome.counters["test_sessions_unchanged"] == 1
    assert calls(checkly) == []
    assert content(database) == before
    assert (rows(database, "SELECT * FROM test_sessions"), rows(database, "SELECT * FROM etl_payloads")) == written


def test_sync_wait_reads_the_details_of_its_own_sessions_alone(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in (1, 2):
        put(checkly, number, [result(number)])
    etl = make()
    etl.progress = StopAt("result details", etl)
    pipeline.sync(etl)
    assert len(due(database)) == 2
    assert pipeline.sync_until_final(make(), [uuid(2)]).word == "ok"
    assert calls(checkly) == [path_of(2, 2)]
    assert due(database) == [(uuid(0xA001), 0)]


# --- executions ----------------------------------------------------------------------------------------------------


def test_executions_are_grouped_by_sequence_when_every_result_of_the_check_has_one(
    make: Make, checkly: Simulator, database: Database
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="none"))
    assert (executions(database), numbers(database)) == (BY_ORDER, [1, 1, 1, 2])
    pipeline.backfill(make(), since=LONG_AGO, until=None, force=True)
    assert (executions(database), numbers(database)) == (BY_SEQUENCE, [1, 2, 2, 1])


@pytest.mark.parametrize("missing", ["null", "404"])
def test_one_result_without_a_sequence_leaves_its_check_inferred_and_others_are_not_concerned(
    make: Make, checkly: Simulator, database: Database, missing: str
) -> None:
    results = sequenced(checkly, 1, *INTERLEAVED[:3], (4, "FINAL", "FAILED", None if missing == "null" else 1))
    put(checkly, 1, [*results, result(5, status="FAILED")])
    if missing == "404":
        checkly.add_fault(match=path_of(1, 4), kind="status", status=404)
    assert pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="all")).word == "ok"
    assert executions(database) == [*BY_ORDER, ("sequence", uuid(0xA005), "FAILED", 0)]


@st.composite
def _results(draw: st.DrawFn) -> list[tuple[str, str | None, str, str | None]]:
    """(check, location, type, sequence) of each result."""
    one = st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["eu", "us", None]),
        st.sampled_from(["FINAL", "ATTEMPT", "PENDING"]),
        st.sampled_from(["s", "t", "u", None]) if draw(st.booleans()) else st.sampled_from(["s", "t", "u"]),
    )
    return draw(st.lists(one, max_size=12))


@settings(max_examples=300, deadline=None)
@given(_results(), st.randoms())
def test_grouping_is_that_of_the_design_in_whatever_order_details_come(
    specs: list[tuple[str, str | None, str, str | None]], random: Any
) -> None:
    body = detail(
        1,
        results=[
            result(n, checkId=uuid(ord(check)), runLocation=location, resultType=type_)
            for n, (check, location, type_, _) in enumerate(specs)
        ],
    )
    rows_ = normalize.normalize_test_session(
        documents.read(json.dumps(body).encode()), test_session_id=uuid(1), account_id=None
    )
    assert rows_.results is not None
    order = list(zip(rows_.results, specs, strict=True))
    random.shuffle(order)
    found: list[Any] = []
    for row, (*_, sequence) in order:
        row.sequence_id = None if sequence is None else uuid(ord(sequence))
        found = normalize.normalize_executions(rows_.results, rows_.test_session)

    # Once more, from the words of design §5: the results of each execution, by first appearance.
    groups: list[tuple[str, list[int]]] = []
    for n, (check, location, _, sequence) in enumerate(specs):
        if all(other[3] for other in specs if other[0] == check):
            for kind, group in groups:
                first = specs[group[0]]
                if kind == "sequence" and (first[0], first[3]) == (check, sequence):
                    group.append(n)
                    break
            else:
                groups.append(("sequence", [n]))
            continue
        for kind, group in reversed(groups):
            first, last = specs[group[0]], specs[group[-1]]
            if kind == "inferred" and first[:2] == (check, location):
                if last[2] == "FINAL":
                    groups.append(("inferred", [n]))
                else:
                    group.append(n)
                break
        else:
            groups.append(("inferred", [n]))
    expected = {n: number for number, (_, group) in enumerate(groups, 1) for n in group}
    assert [row.execution_no for row in rows_.results] == [expected[n] for n in range(len(specs))]
    assert [execution.grouped_by for execution in found] == [kind for kind, _ in groups]


# --- what is rewritten keeps its details ---------------------------------------------------------------------------


def test_a_rewrite_of_the_session_keeps_its_details(make: Make, checkly: Simulator, database: Database) -> None:
    results = sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make())
    held = rows(database, f"SELECT test_session_result_id, {DETAILS} FROM test_session_results ORDER BY position")
    checkly.clear_requests()
    put(checkly, 1, [*results, result(9)], name="renamed")
    assert saved(pipeline.sync(make())) == 1
    assert calls(checkly) == [path_of(1, 9)], "each is read once, ever"
    again = rows(database, f"SELECT test_session_result_id, {DETAILS} FROM test_session_results ORDER BY position")
    assert again[:4] == held
    assert executions(database)[:2] == BY_SEQUENCE
    assert numbers(database) == [1, 2, 2, 1, 3]

    put(checkly, 1, results[:2])
    pipeline.sync(make())
    assert scalar(database, "SELECT count(*) FROM test_session_results") == 2, "what is gone is gone with its details"


def test_details_stay_when_the_setting_is_turned_off_again(
    make: Make, checkly: Simulator, database: Database
) -> None:
    results = sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make())
    put(checkly, 1, results, name="renamed")
    assert saved(pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="none"))) == 1
    assert (details_held(database), executions(database)) == (4, BY_SEQUENCE)


def test_a_document_that_does_not_tell_its_results_keeps_details_and_grouping(
    make: Make, checkly: Simulator, database: Database
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make())
    unknown = detail(1, metadata={"branchName": "other"})
    del unknown["results"]
    checkly.put_test_session(unknown, None)
    enqueue(database, 1)
    assert saved(pipeline.sync(make())) == 1
    assert (details_held(database), executions(database)) == (4, BY_SEQUENCE)
    assert scalar(database, "SELECT DISTINCT branch_name FROM check_executions") == "other"


@pytest.mark.parametrize("keeps", ["true", "false"])
def test_a_replay_keeps_details_with_and_without_their_documents(
    make: Make, checkly: Simulator, database: Database, keeps: str
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make(CHECKLY_ETL_EXPORT__RESULT_DETAILS="none"))
    pipeline.backfill(make(CHECKLY_ETL_EXPORT__KEEP_PAYLOADS=keeps), since=LONG_AGO, until=None, force=True)
    stored = scalar(database, "SELECT count(*) FROM etl_payloads WHERE kind = 'test_session_result'")
    assert stored == (4 if keeps == "true" else 0)
    before, fetched = content(database), rows(database, "SELECT details_fetched_at FROM test_session_results")
    with database.writing() as connection:
        connection.execute(text("DELETE FROM check_executions"))
        if keeps == "true":
            connection.execute(text("UPDATE test_session_results SET trace_id = 'damaged', sequence_id = NULL"))
            connection.execute(text("UPDATE test_session_results SET details_fetched_at = NULL WHERE position = 1"))
    checkly.clear_requests()
    assert pipeline.replay(make()).word == "ok"
    assert checkly.requests == []
    assert content(database) == before
    assert rows(database, "SELECT details_fetched_at FROM test_session_results") == fetched


def test_a_stored_detail_that_cannot_be_read_leaves_the_row_as_it_is_and_is_told(
    make: Make, checkly: Simulator, database: Database
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    pipeline.sync(make())
    before = rows(database, "SELECT * FROM test_session_results ORDER BY position")
    with database.writing() as connection:
        broken = text("UPDATE etl_payloads SET body = '{\"id\": 7}' WHERE kind = 'test_session_result'")
        connection.execute(broken)
    outcome = pipeline.replay(make())
    assert outcome.exit_code == 1
    assert f"result {uuid(0xA001)} cannot be replayed" in str(outcome.error)
    assert rows(database, "SELECT * FROM test_session_results ORDER BY position") == before


# --- a detail never holds its session back -------------------------------------------------------------------------

FAILURES: dict[str, tuple[dict[str, Any], int, list[int], str]] = {
    # fault, exit code, attempts of what is still due, what the warning says
    "500": ({"kind": "status", "status": 500}, 0, [1], ""),
    "broken off": ({"kind": "reset"}, 0, [1], ""),
    "no JSON": ({"kind": "garbage"}, 0, [1], ""),
    "cut short": ({"kind": "cut"}, 0, [1], ""),
    "no UTF-8": ({"kind": "not_utf8"}, 0, [1], ""),
    "too slow": ({"kind": "delay", "seconds": 3}, 0, [1], ""),
    "404": ({"kind": "status", "status": 404}, 0, [], ""),
    "410": ({"kind": "status", "status": 410}, 0, [], ""),
    "403": ({"kind": "status", "status": 403}, 1, [], "1 result details could not be read"),
    "422": ({"kind": "status", "status": 422}, 1, [], "1 result details could not be read"),
    "another id": ({"kind": "wrong_id"}, 0, [1], ""),
    "no document": ({"kind": "status", "status": 200, "body": "[1]"}, 0, [1], ""),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_detail_that_fails_changes_nothing_of_its_session_and_of_no_other_detail(
    make: Make, checkly: Simulator, database: Database, failure: str
) -> None:
    fault, exit_code, attempts, said = FAILURES[failure]
    put(checkly, 1, [result(1), result(2)])
    checkly.add_fault(match=path_of(1, 1), **fault)
    outcome = pipeline.sync(make(CHECKLY_ETL_CHECKLY__TIMEOUT="1s"))
    assert (outcome.exit_code, saved(outcome), outcome.counters["test_sessions_dead"]) == (exit_code, 1, 0)
    assert (outcome.warnings != []) == (exit_code == 1)
    assert said in str(outcome.error)
    assert rows(database, "SELECT * FROM etl_queue") == []
    assert due(database) == [(uuid(0xA001), count) for count in attempts]
    found = rows(database, "SELECT details_fetched_at FROM test_session_results ORDER BY position")
    assert [row["details_fetched_at"] is None for row in found] == [True, False]
    assert scalar(database, "SELECT count(*) FROM etl_payloads WHERE kind = 'test_session_result'") == 1
    assert len(executions(database)) == 2

    checkly.clear_faults()
    checkly.clear_requests()
    assert pipeline.sync(make()).word == "ok"
    assert calls(checkly) == [], "neither what waits nor what was given up"
    pipeline.sync(make(clock_offset=timedelta(minutes=5)))
    assert calls(checkly) == [path_of(1, 1)] * len(attempts)
    assert details_held(database) == 1 + len(attempts)


def test_a_detail_that_breaks_the_contract_is_given_up_and_shown_as_drift(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1), result(2)])
    checkly.put_result(uuid(1), uuid(0xA001), told(result(1), attempts="two"))
    checkly.put_result(uuid(1), uuid(0xA002), told(result(2), sequenceId="no uuid", colour="blue"))
    outcome = pipeline.sync(make())
    assert outcome.exit_code == 1
    assert "1 result details could not be read, the last because: $.attempts" in str(outcome.error)
    assert due(database) == []
    assert rows(database, "SELECT kind, json_path, example FROM etl_drift ORDER BY json_path") == [
        {"kind": "test_session_result", "json_path": "$.attempts", "example": "Expected `float | null`, got `str`"},
        {"kind": "test_session_result", "json_path": "$.colour", "example": "blue"},
        {"kind": "test_session_result", "json_path": "$.sequenceId", "example": "no uuid"},
    ]


def test_after_so_many_failures_a_detail_is_given_up_and_told_once(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1), result(2), result(3)])
    checkly.add_fault(match=f"{path_of(1, 1)}|{path_of(1, 2)}", kind="status", status=500)
    limit = {"CHECKLY_ETL_EXPORT__MAX_ATTEMPTS": "2"}
    assert pipeline.sync(make(**limit)).exit_code == 0
    assert due(database) == [(uuid(0xA001), 1), (uuid(0xA002), 1)]
    outcome = pipeline.sync(make(clock_offset=timedelta(minutes=5), **limit))
    assert outcome.exit_code == 1
    assert [w.startswith("2 result details could not be read") for w in outcome.warnings] == [True]
    assert due(database) == []


@pytest.mark.parametrize("results", [3, 40])
def test_an_outage_is_no_results_fault(make: Make, checkly: Simulator, database: Database, results: int) -> None:
    checkly.put_test_session(detail(1, results=[result(n) for n in range(results)]), None)
    enqueue(database, 1)
    checkly.add_fault(match=r"/results/|test-sessions\?", kind="status", status=503)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert (outcome.exit_code, saved(outcome), len(outcome.failures)) == (3, 1, 1)
    assert "wait for the next pass" in str(outcome.error)
    assert [attempts for _, attempts in due(database)] == [0] * results
    assert len(checkly.requests) < 100, "and not every one is tried"
    checkly.clear_faults()
    assert pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false")).word == "ok"
    assert (due(database), details_held(database)) == ([], results)


def test_a_proxy_that_answers_everything_with_its_own_json_is_an_outage(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1, results=[result(n) for n in range(30)]), None)
    enqueue(database, 1)
    checkly.add_fault(match=r"/results/|test-sessions\?", kind="status", status=200, body='{"status": "ok"}')
    assert pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false")).exit_code == 3
    assert [attempts for _, attempts in due(database)] == [0] * 30


@pytest.mark.parametrize(
    ("fault", "exit_code", "said"),
    [
        ({"status": 401}, 3, "CHECKLY_API_KEY"),
        ({"status": 402}, 0, "set export.result_details to none"),
        ({"status": 429, "headers": {"Retry-After": "600"}}, 3, "pause"),
    ],
)
def test_what_the_whole_account_is_refused_ends_the_phase_and_all_stays_due(
    make: Make,
    checkly: Simulator,
    database: Database,
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
    exit_code: int,
    said: str,
) -> None:
    put(checkly, 1, [result(n) for n in range(80)])
    checkly.add_fault(match="/results/", kind="status", **fault)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__CONCURRENCY="1"))
    assert (outcome.exit_code, saved(outcome)) == (exit_code, 1)
    assert said in caplog.text
    assert len(calls(checkly)) < 40, "some more may have been on their way"
    assert [attempts for _, attempts in due(database)] == [0] * 80
    available = "SELECT count(*) FROM etl_result_details_due WHERE available_at <= :now"
    assert scalar(database, available, now=moment(database)) == 80, "given back"


def moment(database: Database) -> Any:
    """Now, as the warehouse writes it."""
    if database.is_sqlite:
        return scalar(database, "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")
    return scalar(database, "SELECT clock_timestamp()")


def test_details_that_the_database_refuses_stop_no_other_session(
    make: Make, checkly: Simulator, database: Database, engine_name: str
) -> None:
    with database.writing() as connection:
        if engine_name == "sqlite":
            connection.execute(
                text(
                    "CREATE TRIGGER refuse BEFORE UPDATE ON test_session_results WHEN NEW.trace_id = 'bad'"
                    " BEGIN SELECT RAISE(ABORT, 'no'); END"
                )
            )
        else:
            connection.execute(
                text("ALTER TABLE test_session_results ADD CONSTRAINT refuse CHECK (trace_id <> 'bad')")
            )
    for number in range(1, 5):
        put(checkly, number, [result(number)])
        trace = "bad" if number == 3 else "good"
        checkly.put_result(uuid(number), uuid(0xA000 + number), told(result(number), traceId=trace))
    try:
        with pytest.raises(Exception, match=r"refuse|no|constraint"):
            pipeline.sync(make())
    finally:
        if engine_name == "postgresql":
            with database.writing() as connection:
                connection.execute(text("ALTER TABLE test_session_results DROP CONSTRAINT refuse"))
    assert details_held(database) == 3
    assert due(database) == [(uuid(0xA003), 1)]


# --- nothing is lost, nothing is read twice ------------------------------------------------------------------------


class StopAt(pipeline.Silent):
    """Stops the run when a phase begins, or after some steps of it."""

    def __init__(self, phase: str, etl: Etl, steps: int = 0) -> None:
        self._phase, self._etl, self._steps = phase, etl, steps
        self._is_on = False
        self.steps: list[int] = []

    def begin(self, what: str, total: int | None) -> None:
        self._is_on = what == self._phase
        if self._is_on and not self._steps:
            self._etl.stop.set()

    def advance(self, steps: int) -> None:
        if self._is_on:
            self.steps.append(steps)
            if sum(self.steps) >= self._steps:
                self._etl.stop.set()


def test_a_stop_between_the_sessions_and_their_details_loses_nothing(
    make: Make, checkly: Simulator, database: Database
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    etl = make()
    etl.progress = StopAt("result details", etl)
    assert pipeline.sync(etl).word == "interrupted"
    assert (calls(checkly), len(due(database)), executions(database)) == ([], 4, BY_ORDER)
    assert pipeline.sync(make()).word == "ok"
    assert (due(database), executions(database)) == ([], BY_SEQUENCE)


def test_a_stop_in_the_middle_keeps_what_came_and_gives_the_rest_back(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.pipeline.details.BATCH", 10)
    put(checkly, 1, [result(n) for n in range(50)])
    etl = make()
    etl.progress = StopAt("result details", etl, steps=20)
    pipeline.sync(etl)
    assert details_held(database) == 20
    assert [attempts for _, attempts in due(database)] == [0] * 30
    checkly.clear_requests()
    assert pipeline.sync(make()).word == "ok"
    assert len(calls(checkly)) == 30
    assert {name for name, *_ in executions(database)} == {"sequence"}


def test_a_call_that_hangs_does_not_hold_up_a_stop(make: Make, checkly: Simulator, database: Database) -> None:
    put(checkly, 1, [result(n) for n in range(3)])
    checkly.add_fault(match=path_of(1, 1), kind="delay", seconds=30)
    etl = make(CHECKLY_ETL_SCHEDULE__GRACE="1s")
    threading.Timer(1, etl.stop.set).start()
    began = time.monotonic()
    assert pipeline.sync(etl).word == "interrupted"
    assert time.monotonic() - began < 10
    assert details_held(database) == 2
    assert due(database) == [(uuid(0xA001), 0)]


def test_kill_9_while_details_are_read_loses_nothing_and_doubles_nothing(
    make: Make, checkly: Simulator, database: Database, warehouse_url: str
) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    checkly.add_fault(match="/results/", kind="delay", seconds=60, skip=1)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")},
        **environment(checkly.url, warehouse_url),
        "CHECKLY_ETL_EXPORT__RESULT_DETAILS": "all",
        "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d",
    }
    process = subprocess.Popen([sys.executable, "-m", "etl", "sync", "-q"], env=env)
    end = time.monotonic() + 60
    while len(calls(checkly)) < 4:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait()
    checkly.clear_faults()
    assert len(due(database)) == 4
    assert executions(database) == BY_ORDER
    assert pipeline.sync(make(clock_offset=timedelta(minutes=6))).word == "ok", "when the lease has ended"
    assert (due(database), executions(database), details_held(database)) == ([], BY_SEQUENCE, 4)


def test_two_processes_at_once_read_each_detail_once(make: Make, checkly: Simulator, database: Database) -> None:
    for number in range(1, 11):
        put(checkly, number, [result(n) for n in range(number * 20, number * 20 + 20)])
    etl = make()
    etl.progress = StopAt("result details", etl)
    pipeline.sync(etl)
    outcomes: list[Outcome] = []
    etls = [make(), make()]
    threads = [threading.Thread(target=lambda etl=etl: outcomes.append(pipeline.sync(etl))) for etl in etls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.word for outcome in outcomes] == ["ok", "ok"]
    assert len(calls(checkly)) == len(set(calls(checkly))) == 200
    assert (due(database), details_held(database)) == ([], 200)
    assert {name for name, *_ in executions(database)} == {"sequence"}


def test_who_comes_back_after_its_lease_has_ended_changes_nothing(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1)])
    checkly.add_fault(match=path_of(1, 1), kind="delay", seconds=3, times=1)
    slow = threading.Thread(target=pipeline.sync, args=[make(CHECKLY_ETL_EXPORT__LEASE="1s")])
    slow.start()
    while not calls(checkly):
        time.sleep(0.02)
    time.sleep(1.2)
    assert pipeline.sync(make()).word == "ok"
    found = (
        "SELECT details_fetched_at, exported_at FROM test_session_results JOIN test_sessions USING (test_session_id)"
    )
    before = rows(database, found)
    assert before[0]["details_fetched_at"] is not None
    slow.join()
    assert rows(database, found) == before
    assert due(database) == []


def test_details_that_another_process_saves_during_a_rewrite_are_kept(
    make: Make, checkly: Simulator, database: Database
) -> None:
    off = {"CHECKLY_ETL_EXPORT__RESULT_DETAILS": "none"}
    put(checkly, 1, [result(1)])
    pipeline.sync(make(**off))
    put(checkly, 1, [result(1)], name="renamed")
    rewriting = threading.Thread(target=pipeline.sync, args=[make(**off)])
    with database.writing() as connection:
        warehouse.held_columns(connection, [uuid(1)], lock=True)
        warehouse.save_details(connection, uuid(1), {uuid(0xA001): {"trace_id": "7ace"}})
        rewriting.start()
        time.sleep(1.5)
    rewriting.join()
    assert scalar(database, "SELECT name FROM test_sessions") == "renamed"
    assert rows(database, "SELECT trace_id FROM test_session_results") == [{"trace_id": "7ace"}]


def test_a_clock_that_was_set_back_holds_no_detail_up(make: Make, checkly: Simulator, database: Database) -> None:
    put(checkly, 1, [result(1), result(2)])
    checkly.add_fault(match=path_of(1, 1), kind="status", status=500)
    pipeline.sync(make(clock_offset=timedelta(hours=20)))
    checkly.clear_faults()
    pipeline.sync(make())
    assert (due(database), details_held(database)) == ([], 2)


def test_the_rate_budget_is_kept_to_and_the_rest_stays_due(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(n) for n in range(60)])
    etl = make(CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE="20")
    threading.Timer(3, etl.stop.set).start()
    assert pipeline.sync(etl).word == "interrupted"
    assert len(checkly.requests) == 20
    assert details_held(database) == 18, "less the list and the session"
    assert [attempts for _, attempts in due(database)] == [0] * 42


# --- bounds --------------------------------------------------------------------------------------------------------


def test_a_session_of_two_thousand_results_is_read_in_bounded_batches(
    make: Make, checkly: Simulator, database: Database
) -> None:
    results = [result(n, checkId=uuid(0xC000 + n % 50)) for n in range(2000)]
    put(checkly, 1, results)
    for n, row in enumerate(results):
        checkly.put_result(uuid(1), row["testSessionResultId"], told(row, sequenceId=uuid(n)))
    etl = make(CHECKLY_ETL_EXPORT__CONCURRENCY="8")
    etl.progress = watch = StopAt("result details", etl, steps=10_000)
    assert pipeline.sync(etl).word == "ok"
    assert (len(watch.steps), max(watch.steps)) == (20, 100)
    assert details_held(database) == len(executions(database)) == 2000
    assert {name for name, *_ in executions(database)} == {"sequence"}


def test_a_large_detail_is_fetched_once_more_and_alone(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.checkly.client.LARGE_BODY", 20_000)
    put(checkly, 1, [result(n) for n in range(4)])
    for n in range(4):
        log = "x" * (30_000 if n % 2 else 1)
        checkly.put_result(uuid(1), uuid(0xA000 + n), told(result(n), apiCheckResult={"jobLog": log}))
    assert pipeline.sync(make()).word == "ok"
    assert sorted(calls(checkly)) == sorted(path_of(1, n) for n in (0, 1, 1, 2, 3, 3))
    assert scalar(database, "SELECT max(length(body)) FROM etl_payloads WHERE kind = 'test_session_result'") < 2000


# --- what is never stored ------------------------------------------------------------------------------------------


def everything(database: Database) -> str:
    """Every value of every column of every table."""
    with database.reading() as connection:
        return "\n".join(
            repr(tuple(row)) for table in metadata.sorted_tables for row in connection.execute(table.select())
        )


def test_signed_urls_and_sections_are_in_no_table_and_no_log(
    make_etl: Make, simulator: Simulator, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    assert pipeline.sync(make_etl(CHECKLY_ETL_EXPORT__RESULT_DETAILS="all")).word == "ok"
    assert scalar(database, "SELECT count(*) FROM etl_payloads WHERE kind = 'test_session_result'") > 400
    found = everything(database) + caplog.text
    for word in ("X-Amz", "Signature", "assets.simulator.invalid", "jobLog", "CheckResult"):
        assert word not in found, word


def test_a_url_that_may_be_signed_is_not_stored_whatever_field_it_is_in(
    make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1)])
    checkly.put_result(
        uuid(1),
        uuid(0xA001),
        told(
            result(1),
            scheduleError=f"see {SIGNED}",
            filePath="https://assets.simulator.invalid/x#Signature",
            traceId=SIGNED,
            videoUrl=SIGNED,
            video=f"<a href='{SIGNED}'>",
            videos=[SIGNED],
            errorGroupIds=[uuid(0xE001), SIGNED],
            newSection={"url": SIGNED},
            **{SIGNED: True},
            documentation="https://docs.example/x",
        ),
    )
    assert pipeline.sync(make()).word == "ok"
    found = everything(database)
    for word in ("X-Amz", "Signature", "secret of a customer"):
        assert word not in found, word
    row = rows(database, "SELECT schedule_error, file_path, trace_id, attempts FROM test_session_results")[0]
    url = SIGNED.partition("?")[0]
    assert row == {
        "schedule_error": f"see {url}",
        "file_path": "https://assets.simulator.invalid/x",
        "trace_id": url,
        "attempts": 2,
    }
    assert "video" not in scalar(database, "SELECT body FROM etl_payloads WHERE kind = 'test_session_result'")
    body = json.loads(scalar(database, "SELECT body FROM etl_payloads WHERE kind = 'test_session_result'"))
    assert body["errorGroupIds"] == [uuid(0xE001)]
    assert body["documentation"] == "https://docs.example/x"
    assert rows(database, "SELECT json_path FROM etl_drift") == [{"json_path": "$.documentation"}]


def test_a_text_that_is_no_signed_url_is_kept_as_it_is(make: Make, checkly: Simulator, database: Database) -> None:
    put(checkly, 1, [result(1)])
    error = (
        "Private location is offline, see https://www.checklyhq.com/docs/private-locations/#troubleshooting, or ask"
    )
    path = "tests//checkout#guest.spec.ts"
    checkly.put_result(uuid(1), uuid(0xA001), told(result(1), scheduleError=error, filePath=path))
    assert pipeline.sync(make()).word == "ok"
    (row,) = rows(database, "SELECT schedule_error, file_path FROM test_session_results")
    assert row == {"schedule_error": error.replace("#troubleshooting,", ""), "file_path": path}


_texts = st.text("abcé", max_size=5) | st.sampled_from(
    [SIGNED, f"({SIGNED})", f"at {SIGNED} now", "//h/p?X-Amz-Date=1", "#1"]
)
_names = _texts | st.sampled_from(["id", "errorGroupIds", "apiCheckResult", "newCheckResult"])
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_names, _values, max_size=8), st.booleans())
def test_nothing_signed_is_left_of_any_document(value: Json, is_escaped: bool) -> None:
    written = json.dumps(value)
    if is_escaped:
        written = written.replace("?", r"\u003f").replace("//", r"\/\/")
    reduced = normalize.reduced_result(documents.read(written.encode()))
    kept = json.loads(reduced.body)
    assert "X-Amz" not in json.dumps(kept)
    assert not any(isinstance(one, dict) for one in kept.values())
    harmless = {n: v for n, v in value.items() if v is None or isinstance(v, bool | int)}
    for name, one in harmless.items():
        if "X-Amz" not in name and not name.endswith("CheckResult"):
            assert kept[name] == one


# --- upkeep and status ---------------------------------------------------------------------------------------------


@pytest.fixture
def etl(program: Program, checkly: Simulator, warehouse_url: str) -> Program:
    """checkly-etl with that Checkly and all details."""
    program.env = environment(checkly.url, warehouse_url) | {
        "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d",
        "CHECKLY_ETL_EXPORT__RESULT_DETAILS": "all",
    }
    return program


def test_forget_deletes_documents_of_results_and_what_is_due(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1), result(2)])
    put(checkly, 2, [result(3)])
    checkly.add_fault(match=path_of(1, 2), kind="status", status=500)
    etl("sync")
    assert "result details 1 still to be read" in etl("status").out
    assert etl("status", "--json").json["result_details_due"] == 1
    assert etl("forget", "test-session", uuid(1)).code == 0
    assert due(database) == []
    found = rows(database, "SELECT document_id FROM etl_payloads WHERE kind = 'test_session_result'")
    assert [str(row["document_id"]) for row in found] == [uuid(0xA003)]


def test_a_session_that_is_forgotten_while_its_details_are_read_stays_forgotten(
    etl: Program, make: Make, checkly: Simulator, database: Database
) -> None:
    put(checkly, 1, [result(1)])
    checkly.add_fault(match=path_of(1, 1), kind="delay", seconds=2)
    reading = threading.Thread(target=pipeline.sync, args=[make()])
    reading.start()
    while not calls(checkly):
        time.sleep(0.02)
    etl("forget", "test-session", uuid(1))
    reading.join()
    assert uuid(0xA001) not in everything(database)


def test_details_outlive_their_pruned_documents(etl: Program, checkly: Simulator, database: Database) -> None:
    sequenced(checkly, 1, *INTERLEAVED)
    etl("sync")
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_payloads SET fetched_at = '2020-01-01 00:00:00.000000'"))
    assert etl("prune", "--before", "2021-01-01", "--json").json["payloads"] == 6
    put(checkly, 1, [result(n, checkId=uuid(0xC001), resultType="FINAL") for n in range(1, 5)], name="renamed")
    etl("sync")
    assert etl("replay").code == 0
    assert details_held(database) == 4
    assert {name for name, *_ in executions(database)} == {"sequence"}


def test_a_plan_says_that_details_come_on_top(etl: Program, checkly: Simulator) -> None:
    put(checkly, 1, [result(1)])
    assert "plus error groups and result details" in etl("backfill", "--since", "3000d", "--plan").out

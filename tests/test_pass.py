"""The pass, from the API into the warehouse: the guarantees of discovery, drain, error groups and replay."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Table, text

from etl import bulk, normalize, pipeline, session_queue, tables, upkeep, warehouse
from etl.checkly import Client
from etl.database import Database
from etl.pipeline import Etl, Outcome
from etl.simulator import Simulator, World
from etl.simulator.faults import Fault
from tests.conftest import ACCOUNT, NOW, content, rows, scalar
from tests.documents import detail, entry, error_group, result, running, uuid

Make = Callable[..., Etl]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def empty_world() -> World:
    """An account with nothing in it but what the test puts there."""
    return World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1)


@pytest.fixture
def checkly(empty_world: World) -> Iterator[Simulator]:
    """Checkly with what the test puts into it."""
    with Simulator(empty_world, rate_limit=0) as serving:
        yield serving


@pytest.fixture
def make(make_etl: Make, checkly: Simulator, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The pipeline over `checkly`, with short retries."""
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.01)

    def build(**options: Any) -> Etl:
        fixed = {"CHECKLY_API_URL": checkly.url, "CHECKLY_ETL_EXPORT__CONCURRENCY": "4"}
        # The documents are of November 2026, whatever today is.
        return make_etl(**{**fixed, "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d", **options})

    return build


def paths(simulator: Simulator) -> list[str]:
    return [request.path for request in simulator.requests]


def fetches(simulator: Simulator, number: int) -> int:
    return paths(simulator).count(f"/v1/test-sessions/{uuid(number)}")


def enqueue(database: Database, *numbers: int, force: bool = False) -> None:
    database.run(lambda c: session_queue.enqueue(c, [uuid(number) for number in numbers], force=force))


def saved(outcome: Outcome) -> int:
    return outcome.counters["test_sessions_saved"]


def queue(database: Database) -> dict[str, str]:
    return {str(row["test_session_id"]): row["state"] for row in rows(database, "SELECT * FROM etl_queue")}


# --- discovery ------------------------------------------------------------------------------------------------


def test_a_sync_exports_every_session_and_the_next_one_costs_its_listing_alone(
    make_etl: Make, simulator: Simulator, database: Database
) -> None:
    etl = make_etl()
    first = pipeline.sync(etl)
    assert first.word == "ok"
    assert saved(first) == first.listed == scalar(database, "SELECT count(*) FROM test_sessions")
    before = content(database)

    simulator.clear_requests()
    second = pipeline.sync(etl)

    assert saved(second) == second.counters["test_sessions_unchanged"] == 0
    assert set(paths(simulator)) == {"/v1/test-sessions"}
    assert second.counters["api_requests"] == len(simulator.requests)
    assert content(database) == before


def test_both_engines_hold_the_same_rows(
    new_warehouse: Callable[[str], str], small_world: World, make_etl_at: Callable[[str, str], Etl]
) -> None:
    found = []
    with Simulator(small_world, rate_limit=0) as simulator:
        for engine in ("sqlite", "postgresql"):
            etl = make_etl_at(simulator.url, new_warehouse(engine))
            assert pipeline.sync(etl).word == "ok"
            found.append(content(etl.database))
            etl.database.close()
    for table in found[0]:
        if table != "etl_queue":  # it holds times of each run's own clock
            assert found[0][table] == found[1][table], table
            assert found[0][table] or table == "etl_queue", table


def test_a_changed_list_entry_and_no_other_is_fetched_again(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    pipeline.sync(make())
    checkly.clear_requests()

    group = error_group(1)
    checkly.put_error_group(group)
    late = detail(1, errorGroupIds=[group["id"]], results=[result(1, errorGroupIds=[group["id"]])])
    checkly.put_test_session(late, entry(1, errorGroupIds=[group["id"]]))
    outcome = pipeline.sync(make())

    assert saved(outcome) == 1
    assert fetches(checkly, 1) == 1
    assert fetches(checkly, 2) == 0
    links = rows(database, "SELECT * FROM test_session_error_groups")
    assert [str(link["test_session_id"]) for link in links] == [uuid(1)]


def test_discovered_until_moves_only_when_the_last_page_is_queued(
    make_etl: Make, simulator: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.checkly.client.PAGE_SIZE", 10)
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.01)
    simulator.add_fault(match="nextId=", kind="status", status=500)
    outcome = pipeline.sync(make_etl())

    assert outcome.exit_code == 3
    assert "discovery failed" in str(outcome.error)
    assert saved(outcome) == 10, "the page that came is drained all the same"
    account = rows(database, "SELECT * FROM etl_accounts")[0]
    assert account["discovered_until"] is None
    assert account["discovery_token"] is None, "the next process need not wait for a lease"
    assert account["last_success_at"] is None

    simulator.clear_faults()
    assert pipeline.sync(make_etl()).word == "ok"
    assert rows(database, "SELECT * FROM etl_accounts")[0]["discovered_until"] is not None


def test_the_first_sync_looks_back_over_the_retention_and_later_ones_over_the_lookback(
    make: Make, checkly: Simulator
) -> None:
    options = {"CHECKLY_ETL_CHECKLY__RETENTION": "30d", "CHECKLY_ETL_EXPORT__LOOKBACK": "3d"}
    pipeline.sync(make(**options))
    pipeline.sync(make(**options))
    moment = datetime.now(UTC).timestamp()
    since = [float(request.query["from"][0]) for request in checkly.requests]
    assert since[0] == pytest.approx(moment - 30 * 86400, abs=60)
    assert since[1] == pytest.approx(moment - 3 * 86400, abs=60)


def test_one_entry_without_a_usable_id_stops_no_other(make: Make, checkly: Simulator, database: Database) -> None:
    import json

    checkly.put_test_session(detail(1), entry(1))
    page = {"length": 2, "entries": [entry(1), {"id": 7, "name": "?"}]}
    checkly.add_fault(match=r"^/v1/test-sessions\?", kind="status", status=200, body=json.dumps(page))
    outcome = pipeline.sync(make())
    assert saved(outcome) == 1
    assert outcome.exit_code == 1
    assert rows(database, "SELECT json_path FROM etl_drift") == [{"json_path": "$.id"}]


def test_a_cursor_that_repeats_ends_the_walk_with_an_error(make: Make, checkly: Simulator) -> None:
    import json

    page = {"length": 1, "entries": [entry(1)], "nextId": "again"}
    checkly.put_test_session(detail(1), None)
    checkly.add_fault(match=r"^/v1/test-sessions\?", kind="status", status=200, body=json.dumps(page))
    outcome = pipeline.sync(make())
    assert outcome.exit_code == 3
    assert "cursor repeats" in str(outcome.error)
    assert saved(outcome) == 1


def test_without_the_list_a_sync_carries_on_with_queued_ids(
    make: Make, checkly: Simulator, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    checkly.put_test_session(detail(1), None)
    checkly.add_fault(match=r"^/v1/test-sessions\?", kind="status", status=402)
    enqueue(database, 1)
    outcome = pipeline.sync(make())
    assert (saved(outcome), outcome.exit_code) == (1, 0)
    assert "checkly-etl enqueue" in caplog.text


# --- backfill -------------------------------------------------------------------------------------------------


def test_a_second_backfill_costs_its_listing_and_force_fetches_all_and_writes_no_row(
    make_etl: Make, simulator: Simulator, database: Database
) -> None:
    etl = make_etl()
    first = pipeline.backfill(etl, since=LONG_AGO, until=None)
    written = rows(database, "SELECT test_session_id, exported_at, etl_run_id FROM test_sessions ORDER BY 1")
    before = content(database)
    simulator.clear_requests()
    again = pipeline.backfill(etl, since=LONG_AGO, until=None)
    assert saved(again) == 0
    assert set(paths(simulator)) == {"/v1/test-sessions"}

    simulator.clear_requests()
    forced = pipeline.backfill(etl, since=LONG_AGO, until=None, force=True)
    assert saved(forced) == 0
    assert forced.counters["test_sessions_unchanged"] == saved(first)
    assert len(set(paths(simulator))) == saved(first) + 1
    after = rows(database, "SELECT test_session_id, exported_at, etl_run_id FROM test_sessions ORDER BY 1")
    assert after == written
    ignoring_polls = {table: found for table, found in content(database).items() if table != "etl_queue"}
    assert ignoring_polls == {table: found for table, found in before.items() if table != "etl_queue"}


def test_a_backfill_takes_about_one_call_a_session(make_etl: Make, simulator: Simulator) -> None:
    outcome = pipeline.backfill(make_etl(), since=LONG_AGO, until=None)
    groups = sum(path.startswith("/v1/test-session-error-groups") for path in paths(simulator))
    assert outcome.counters["api_requests"] - groups <= 1.05 * saved(outcome) + 1


def test_a_backfill_exports_oldest_first_unless_told_otherwise(make: Make, checkly: Simulator) -> None:
    days = {1: "2026-11-03", 2: "2026-11-01", 3: "2026-11-02"}
    for number, day in days.items():
        checkly.put_test_session(detail(number), entry(number, created_at=f"{day}T00:00:00.000Z"))
    one = {"CHECKLY_ETL_EXPORT__CONCURRENCY": "1"}
    for newest_first, order in ((False, [2, 3, 1]), (True, [1, 3, 2])):
        checkly.clear_requests()
        pipeline.backfill(make(**one), since=LONG_AGO, until=None, newest_first=newest_first, force=True)
        wanted = [f"/v1/test-sessions/{uuid(number)}" for number in order]
        assert [path for path in paths(checkly) if path in wanted] == wanted


def test_a_backfill_does_not_move_discovered_until(make: Make, database: Database) -> None:
    pipeline.backfill(make(), since=LONG_AGO, until=NOW)
    assert rows(database, "SELECT discovered_until FROM etl_accounts") == [{"discovered_until": None}]


def test_a_plan_counts_what_the_list_shows_twice_once(make: Make, checkly: Simulator, database: Database) -> None:
    pages = [{"entries": [entry(1), entry(2), entry(1)], "nextId": "x"}, {"entries": [entry(2), entry(3)]}]
    for match, page in ((r"nextId", pages[1]), (r"/v1/test-sessions\?", pages[0])):
        checkly.faults.add(Fault("status", match=match, status=200, body=json.dumps(page)))
    plan = pipeline.plan_backfill(make(), since=LONG_AGO, until=None)
    assert (plan.listed, plan.to_fetch, plan.calls) == (5, 3, 5)


def test_a_broken_field_of_a_list_entry_is_drift_and_its_session_is_exported(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1, updated_at="yesterday", provider="API", region="eu-west-1"))
    assert saved(pipeline.sync(make())) == 1
    assert rows(database, "SELECT json_path FROM etl_drift") == [{"json_path": "$.updated_at"}]
    columns = rows(database, "SELECT provider, region, updated_at FROM test_sessions")
    assert columns == [{"provider": "API", "region": "eu-west-1", "updated_at": None}]
    assert pipeline.sync(make()).counters["test_sessions_unchanged"] == 0, "it is not fetched in every pass"


def test_a_plan_counts_calls_and_writes_nothing(make_etl: Make, database: Database) -> None:
    plan = pipeline.plan_backfill(make_etl(), since=LONG_AGO, until=None)
    assert plan.listed == plan.to_fetch > 0
    assert plan.calls > plan.to_fetch
    assert queue(database) == {}
    assert scalar(database, "SELECT count(*) FROM etl_runs") == 0
    pipeline.backfill(make_etl(), since=LONG_AGO, until=None)
    assert pipeline.plan_backfill(make_etl(), since=LONG_AGO, until=None).to_fetch == 0


# --- a session's life -------------------------------------------------------------------------------------------


def test_a_running_session_is_read_again_until_it_is_final(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(running(1), entry(1, status="RUNNING", stoppedAt=None))
    assert saved(pipeline.sync(make())) == 1
    row = rows(database, "SELECT * FROM etl_queue")[0]
    assert (row["state"], row["attempts"]) == ("queued", 0)

    assert saved(pipeline.sync(make())) == 0
    assert fetches(checkly, 1) == 1, "not before running_poll"

    checkly.put_test_session(detail(1, results=[result(3)]), None)
    outcome = pipeline.sync(make(clock_offset=timedelta(minutes=2)))
    assert saved(outcome) == 1
    assert queue(database) == {}
    assert rows(database, "SELECT is_final, status FROM test_sessions") in (
        [{"is_final": True, "status": "PASSED"}],
        [{"is_final": 1, "status": "PASSED"}],
    )
    assert scalar(database, "SELECT count(*) FROM test_session_results") == 1, "replaced as a whole"


def test_a_session_that_runs_for_too_long_is_left_and_called_stale(
    make: Make, checkly: Simulator, database: Database
) -> None:
    from etl import warehouse

    checkly.put_test_session(running(1), entry(1, status="RUNNING", stoppedAt=None))
    pipeline.sync(make())
    outcome = pipeline.sync(make(clock_offset=timedelta(hours=25)))
    assert outcome.counters["test_sessions_unchanged"] == 1
    assert queue(database) == {}
    with database.reading() as connection:
        assert [row["test_session_id"] for row in warehouse.stale_test_sessions(connection)] == [uuid(1)]
    checkly.clear_requests()
    pipeline.sync(make(clock_offset=timedelta(hours=26)))
    assert fetches(checkly, 1) == 0


def test_polls_of_a_running_session_become_rarer(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.put_test_session(running(1), entry(1, status="RUNNING", stoppedAt=None))
    pipeline.sync(make())
    pipeline.sync(make(clock_offset=timedelta(hours=10)))
    wait = "SELECT available_at, enqueued_at FROM etl_queue"
    row = rows(database, wait)[0]
    parse = datetime.fromisoformat if isinstance(row["available_at"], str) else (lambda value: value)
    waited = parse(row["available_at"]) - parse(row["enqueued_at"])
    assert waited > timedelta(hours=11), "two hours after ten, not a minute"


def test_a_running_document_never_overwrites_a_final_one(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.put_test_session(detail(1), entry(1))
    pipeline.sync(make())
    before = rows(database, "SELECT * FROM test_sessions")
    checkly.put_test_session(running(1), None)
    enqueue(database, 1)
    outcome = pipeline.sync(make())
    assert outcome.counters["test_sessions_unchanged"] == 1
    assert rows(database, "SELECT * FROM test_sessions") == before
    assert scalar(database, "SELECT count(*) FROM test_session_results") == 2


def test_absent_results_keep_the_stored_ones_and_an_empty_list_deletes_them(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    pipeline.sync(make())
    unknown = detail(1, name="renamed", metadata={"branchName": "other"})
    del unknown["results"]
    checkly.put_test_session(unknown, None)
    enqueue(database, 1)
    assert saved(pipeline.sync(make())) == 1
    assert scalar(database, "SELECT count(*) FROM test_session_results") == 2
    executions = rows(database, "SELECT branch_name, history_key FROM check_executions")
    assert [row["branch_name"] for row in executions] == ["other", "other"]

    checkly.put_test_session(detail(1, results=[]), None)
    enqueue(database, 1)
    pipeline.sync(make())
    assert scalar(database, "SELECT count(*) FROM test_session_results") == 0
    assert scalar(database, "SELECT count(*) FROM check_executions") == 0


def test_a_404_of_a_session_that_we_hold_changes_nothing(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.put_test_session(detail(1), entry(1))
    pipeline.sync(make())
    before = content(database)
    checkly.add_fault(match=uuid(1), kind="status", status=404)
    enqueue(database, 1)
    outcome = pipeline.sync(make())
    assert (outcome.exit_code, outcome.counters["test_sessions_unchanged"]) == (0, 1)
    assert content(database) == before


def test_a_404_of_a_session_that_we_do_not_hold_is_a_dead_letter(make: Make, database: Database) -> None:
    enqueue(database, 1)
    outcome = pipeline.sync(make())
    assert outcome.exit_code == 1
    letter = rows(database, "SELECT state, error_kind, last_error FROM etl_queue")[0]
    assert (letter["state"], letter["error_kind"]) == ("dead", "not_found")
    assert uuid(1) in letter["last_error"]


def test_a_session_known_by_id_only_is_read_again_at_the_settle_delays(
    make: Make, checkly: Simulator, database: Database
) -> None:
    moment = datetime.now(UTC)
    stopped = (moment - timedelta(minutes=5)).isoformat()
    checkly.put_test_session(detail(1, startedAt=stopped, stoppedAt=stopped), None)
    enqueue(database, 1)
    pipeline.sync(make())
    assert rows(database, "SELECT state, source FROM etl_queue") == [{"state": "queued", "source": "settle"}]
    pipeline.sync(make(clock_offset=timedelta(minutes=20)))
    assert fetches(checkly, 1) == 2
    pipeline.sync(make(clock_offset=timedelta(hours=25)))
    assert fetches(checkly, 1) == 3
    assert queue(database) == {}


def test_the_columns_of_the_list_survive_a_fetch_without_its_entry(
    make: Make, checkly: Simulator, database: Database
) -> None:
    lean = {"CHECKLY_ETL_EXPORT__KEEP_PAYLOADS": "false"}
    checkly.put_test_session(detail(1), entry(1))
    pipeline.sync(make(**lean))
    assert scalar(database, "SELECT count(*) FROM etl_payloads") == 0
    checkly.put_test_session(detail(1, name="renamed"), None)
    enqueue(database, 1)
    assert saved(pipeline.sync(make(**lean))) == 1
    row = rows(database, "SELECT name, provider, invoker_name, region, project_id FROM test_sessions")[0]
    assert (row["name"], row["provider"], row["invoker_name"]) == ("renamed", "GITHUB", "Ada")
    assert str(row["project_id"]) == uuid(0xB000)


# --- bad documents and bad ways -----------------------------------------------------------------------------------


def test_a_document_of_another_id_is_never_stored(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.put_test_session(detail(1), entry(1))
    checkly.add_fault(match=f"/{uuid(1)}", kind="wrong_id")
    outcome = pipeline.sync(make())
    assert (outcome.exit_code, outcome.retrying) == (0, 1)
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 0
    letter = rows(database, "SELECT state, attempts, error_kind, last_error FROM etl_queue")[0]
    assert (letter["state"], letter["attempts"], letter["error_kind"]) == ("queued", 1, "unreadable")
    assert "that was asked for" in letter["last_error"]

    outcome = pipeline.sync(make(clock_offset=timedelta(hours=2), CHECKLY_ETL_EXPORT__MAX_ATTEMPTS="2"))
    assert (outcome.exit_code, outcome.counters["test_sessions_dead"]) == (1, 1)
    assert rows(database, "SELECT state, error_kind FROM etl_queue") == [
        {"state": "dead", "error_kind": "unreadable"}
    ]


@pytest.mark.parametrize(
    "body", ['{"statusCode": 503, "error": "Service Unavailable"}', "{}", "null", "[]", '{"a": 1}']
)
def test_json_that_is_no_test_session_blames_none_and_buries_none(
    make: Make, checkly: Simulator, database: Database, body: str
) -> None:
    """A gateway answered so for 12 seconds, and 23 of 400 test sessions were dead letters for good."""
    for number in range(1, 6):
        checkly.put_test_session(detail(number), entry(number))
    checkly.add_fault(match="/v1/test-sessions/", kind="status", status=200, body=body)
    outcome = pipeline.sync(make(CHECKLY_ETL_CHECKLY__TIMEOUT="1s"))
    assert outcome.counters["test_sessions_dead"] == 0
    assert {row["state"] for row in rows(database, "SELECT state FROM etl_queue")} == {"queued"}
    checkly.clear_faults()
    assert saved(pipeline.sync(make(clock_offset=timedelta(minutes=5)))) == 5
    assert queue(database) == {}


def test_one_bad_session_stops_no_other_and_says_what_is_wrong(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in range(1, 8):
        checkly.put_test_session(detail(number), entry(number))
    checkly.put_test_session(detail(4, results=[result(1), result(2, status=5)]), entry(4))
    outcome = pipeline.sync(make())
    assert (saved(outcome), outcome.counters["test_sessions_dead"], outcome.exit_code) == (6, 1, 1)
    letter = rows(database, "SELECT * FROM etl_queue")[0]
    assert letter["error_kind"] == "payload"
    assert "$.results[1].status" in letter["last_error"]

    checkly.clear_requests()
    assert saved(pipeline.sync(make())) == 0
    assert fetches(checkly, 4) == 0, "it stays dead until its list entry changes"
    checkly.put_test_session(detail(4), entry(4, updated_at="2026-11-14T11:00:00.000Z"))
    assert saved(pipeline.sync(make())) == 1
    assert queue(database) == {}


def test_a_body_that_is_no_json_is_the_ways_fault_until_the_limit(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    checkly.add_fault(match=f"/{uuid(1)}", kind="cut")
    outcome = pipeline.sync(make())
    assert (saved(outcome), outcome.retrying, outcome.exit_code) == (1, 1, 0)
    assert rows(database, "SELECT state, attempts, error_kind FROM etl_queue") == [
        {"state": "queued", "attempts": 1, "error_kind": "unreadable"}
    ]
    last = make(clock_offset=timedelta(hours=1), CHECKLY_ETL_EXPORT__MAX_ATTEMPTS="2")
    assert pipeline.sync(last).exit_code == 1
    assert rows(database, "SELECT state, attempts, error_kind FROM etl_queue") == [
        {"state": "dead", "attempts": 2, "error_kind": "unreadable"}
    ]


def test_text_that_no_database_can_hold_is_replaced_in_columns_and_kept_in_the_payload(
    make: Make, checkly: Simulator, database: Database
) -> None:
    import json

    body = json.dumps(detail(1)).replace("session 1", r"a\u0000b\ud800c").encode()
    checkly.put_test_session(body, entry(1))
    assert saved(pipeline.sync(make())) == 1
    assert scalar(database, "SELECT name FROM test_sessions") == "a\ufffdb\ufffdc"
    stored = scalar(database, "SELECT body FROM etl_payloads WHERE kind = 'test_session'")
    assert stored.encode() == body


def test_403_on_one_document_is_a_dead_letter_and_on_all_of_them_ends_the_account(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    checkly.add_fault(match=f"/{uuid(1)}", kind="status", status=403)
    outcome = pipeline.sync(make())
    assert (saved(outcome), outcome.exit_code) == (1, 1)
    assert rows(database, "SELECT error_kind FROM etl_queue") == [{"error_kind": "forbidden"}]

    checkly.clear_faults()
    checkly.add_fault(kind="status", status=403)
    enqueue(database, 1, 2)
    refused = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert refused.exit_code == 3
    assert set(queue(database).values()) == {"queued"}


def test_a_refused_key_leaves_the_queue_as_it_was(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.add_fault(kind="status", status=401)
    enqueue(database, 1, 2, 3)
    for discover in ("true", "false"):
        outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER=discover))
        assert outcome.exit_code == 3
        assert "CHECKLY_API_KEY" in str(outcome.error)
        found = rows(database, "SELECT DISTINCT state, attempts FROM etl_queue")
        assert found == [{"state": "queued", "attempts": 0}]


@pytest.mark.parametrize("sessions", [3, 30])
@pytest.mark.parametrize("discover", ["true", "false"])
def test_an_outage_is_no_sessions_fault(
    make: Make, checkly: Simulator, database: Database, sessions: int, discover: str
) -> None:
    enqueue(database, *range(1, sessions + 1))
    checkly.add_fault(kind="status", status=503)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER=discover))
    assert outcome.exit_code == 3
    assert "run again" in str(outcome.error)
    assert rows(database, "SELECT state, attempts, count(*) AS n FROM etl_queue GROUP BY 1, 2") == [
        {"state": "queued", "attempts": 0, "n": sessions}
    ]


def test_an_outage_in_the_middle_blames_nobody_and_everything_arrives_afterwards(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in range(1, 41):
        checkly.put_test_session(detail(number), entry(number))
    checkly.add_fault(match="/v1/test-sessions/", kind="reset", skip=15)
    outcome = pipeline.sync(make())
    assert outcome.exit_code == 3
    assert saved(outcome) >= 10
    assert rows(database, "SELECT DISTINCT state, attempts FROM etl_queue") == [{"state": "queued", "attempts": 0}]
    checkly.clear_faults()
    assert saved(pipeline.sync(make())) + saved(outcome) == 40


def test_many_that_always_fail_end_the_pass_and_do_not_hold_up_others_in_the_next_one(
    make: Make, checkly: Simulator, database: Database
) -> None:
    bad, good = range(1, 21), range(21, 24)
    for number in bad:
        checkly.put_test_session(detail(number), entry(number))
        checkly.add_fault(match=f"/v1/test-sessions/{uuid(number)}", kind="status", status=500)
    for number in good:
        checkly.put_test_session(detail(number), entry(number))
    enqueue(database, *bad)  # and somebody waits for them
    for _ in range(3):
        assert pipeline.sync(make()).exit_code == 3, "nobody knows whose fault it is"
    assert {str(row["test_session_id"]) for row in rows(database, "SELECT test_session_id FROM test_sessions")} == {
        uuid(number) for number in good
    }


def test_a_session_that_always_fails_is_blamed_even_when_it_is_alone(
    make: Make, checkly: Simulator, database: Database
) -> None:
    enqueue(database, 1)
    checkly.add_fault(match=f"/{uuid(1)}", kind="status", status=500)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert outcome.exit_code == 0
    assert rows(database, "SELECT attempts, error_kind FROM etl_queue") == [
        {"attempts": 1, "error_kind": "unavailable"}
    ]


@pytest.mark.parametrize("page", ['{"status": "ok"}', "[]", '"hello"', '{"testSessionId": "' + uuid(99) + '"}'])
def test_a_proxy_that_answers_everything_with_its_own_json_is_an_outage_and_no_sessions_fault(
    make: Make, checkly: Simulator, database: Database, page: str
) -> None:
    enqueue(database, *range(1, 31))
    checkly.add_fault(kind="status", status=200, body=page, headers={"Content-Type": "application/json"})
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert outcome.exit_code == 3
    assert rows(database, "SELECT state, attempts, count(*) AS n FROM etl_queue GROUP BY 1, 2") == [
        {"state": "queued", "attempts": 0, "n": 30}
    ]


def test_many_bodies_over_the_limit_are_dead_letters_and_hold_nobody_up(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for number in range(1, 31):
        checkly.put_test_session(detail(number, name="x" * (100_000 if number > 1 else 1)), entry(number))
    etl = make(CHECKLY_ETL_CHECKLY__MAX_BODY="50 kB")
    outcome = pipeline.sync(etl)
    assert (outcome.exit_code, saved(outcome), outcome.counters["test_sessions_dead"]) == (1, 1, 29)
    assert set(queue(database).values()) == {"dead"}


def test_a_large_document_is_fetched_once_more_and_alone(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("etl.checkly.client", "etl.pipeline.drain"):
        monkeypatch.setattr(sys.modules[module], "LARGE_BODY", 20_000)
    for number in range(1, 21):
        checkly.put_test_session(detail(number, name="x" * (30_000 if number % 2 else 1)), entry(number))
    outcome = pipeline.sync(make())
    assert (outcome.word, saved(outcome)) == ("ok", 20)
    assert [fetches(checkly, number) for number in range(1, 21)] == [2, 1] * 10
    assert queue(database) == {}


# --- rate limits ------------------------------------------------------------------------------------------------


def test_a_429_pauses_and_the_pass_goes_on(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.put_test_session(detail(1), entry(1))
    checkly.add_fault(kind="status", status=429, headers={"Retry-After": "1"}, times=1)
    outcome = pipeline.sync(make())
    assert (saved(outcome), outcome.word) == (1, "ok")
    assert outcome.counters["throttled_ms"] >= 700, "most of the second: it begins when the answer is read"
    assert outcome.counters["api_retries"] == 1


def test_a_long_pause_ends_the_pass_and_stays_stored(make: Make, checkly: Simulator, database: Database) -> None:
    checkly.add_fault(kind="status", status=429, headers={"Retry-After": "600"})
    enqueue(database, 1)
    assert pipeline.sync(make()).exit_code == 3
    checkly.clear_requests()
    assert pipeline.sync(make()).exit_code == 3
    assert checkly.requests == [], "nobody knocks while the pause lasts"
    assert rows(database, "SELECT state, attempts FROM etl_queue") == [{"state": "queued", "attempts": 0}]
    checkly.clear_faults()
    checkly.put_test_session(detail(1), None)
    assert saved(pipeline.sync(make(clock_offset=timedelta(minutes=11)))) == 1


def test_the_next_page_of_the_list_is_asked_for_while_one_is_saved(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 251):
        checkly.put_test_session(detail(number), entry(number))
    enqueue_listed = session_queue.enqueue_listed
    pages: list[int] = []  # asked for, at the end of saving each

    def waiting(connection: Any, entries: Any, **options: Any) -> int:
        wanted = min(len(pages) + 2, 3)
        until = time.monotonic() + 5
        while len(paths(checkly)) < wanted and time.monotonic() < until:
            time.sleep(0.01)
        pages.append(len(paths(checkly)))
        return enqueue_listed(connection, entries, **options)

    monkeypatch.setattr(session_queue, "enqueue_listed", waiting)
    etl = make(CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE="0")
    assert pipeline.backfill(etl, since=LONG_AGO, until=None).listed == 250
    assert pages == [2, 3, 3]


# --- error groups -------------------------------------------------------------------------------------------------


def with_groups(checkly: Simulator, number: int, *groups: int) -> None:
    ids = [error_group(group)["id"] for group in groups]
    checkly.put_test_session(detail(number, errorGroupIds=ids), entry(number, errorGroupIds=ids))


def test_one_unknown_error_group_costs_one_call_and_many_cost_a_page(
    make: Make, checkly: Simulator, database: Database
) -> None:
    for group in range(1, 51):
        checkly.put_error_group(error_group(group))
    with_groups(checkly, 1, 1)
    pipeline.sync(make())
    calls = [path for path in paths(checkly) if "error-groups" in path]
    assert calls == [f"/v1/test-session-error-groups/{error_group(1)['id']}"]

    checkly.clear_requests()
    with_groups(checkly, 2, *range(1, 51))
    pipeline.sync(make())
    assert [path for path in paths(checkly) if "error-groups" in path] == ["/v1/test-session-error-groups"]
    assert scalar(database, "SELECT count(*) FROM error_groups WHERE fetched_at IS NOT NULL") == 50

    checkly.clear_requests()
    pipeline.sync(make())
    assert len(checkly.requests) == 1, "known ones are not asked for again"


def test_an_error_group_that_checkly_no_longer_has_is_not_asked_for_for_ever(
    make: Make, checkly: Simulator, database: Database
) -> None:
    with_groups(checkly, 1, 1)
    assert pipeline.sync(make()).word == "ok"
    checkly.clear_requests()
    pipeline.sync(make())
    assert not any("error-groups" in path for path in paths(checkly))


def test_a_known_error_group_is_read_again_when_a_newer_session_refers_to_it(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_error_group(error_group(1))
    with_groups(checkly, 1, 1)
    pipeline.sync(make())
    later = error_group(1, lastSeen="2026-11-14T12:00:00.000Z", environments=["staging"])
    checkly.put_error_group(later)
    checkly.clear_requests()
    with_groups(checkly, 2, 1)  # started before our copy's last_seen
    pipeline.sync(make())
    assert not any("error-groups" in path for path in paths(checkly))

    newer = detail(3, startedAt="2026-11-14T12:00:00.000Z", errorGroupIds=[later["id"]])
    checkly.put_test_session(newer, entry(3))
    pipeline.sync(make())
    assert rows(database, "SELECT environment FROM error_group_environments") == [{"environment": "staging"}]


def test_an_error_group_of_an_account_that_nobody_exports_is_read_with_the_default_one(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_error_group(error_group(1))
    ids = [error_group(1)["id"]]
    checkly.put_test_session(detail(1, errorGroupIds=ids), entry(1, errorGroupIds=ids, accountId=uuid(7)))
    assert pipeline.sync(make()).word == "ok"
    (row,) = rows(database, "SELECT account_id, error_hash FROM error_groups")
    assert (str(row["account_id"]), row["error_hash"]) == (uuid(7), "hash")


@pytest.mark.parametrize("status", [500, 403, 400])
def test_one_error_group_that_cannot_be_read_holds_up_no_other(
    make: Make, checkly: Simulator, database: Database, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    for group in range(1, 203):
        checkly.put_error_group(error_group(group))
    with_groups(checkly, 1, *range(3, 203))
    pipeline.sync(make())
    with_groups(checkly, 2, 1, 2)  # too few for the pages that all of them are
    checkly.add_fault(match=f"error-groups/{error_group(1)['id']}", kind="status", status=status)
    outcome = pipeline.sync(make())
    assert outcome.exit_code == (1 if status == 500 else 0)
    assert f"error group {error_group(1)['id']}" in caplog.text
    unread = rows(database, "SELECT error_group_id FROM error_groups WHERE fetched_at IS NULL")
    assert [str(row["error_group_id"]) for row in unread] == [error_group(1)["id"]]


def test_an_error_group_that_answers_as_another_one_is_asked_for_again(
    make: Make, checkly: Simulator, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    checkly.put_error_group(error_group(1))
    with_groups(checkly, 1, 1)
    checkly.add_fault(match="error-groups/", kind="status", status=200, body=json.dumps(error_group(2)))
    assert pipeline.sync(make()).exit_code == 1
    assert "the next pass tries again" in caplog.text
    assert rows(database, "SELECT fetched_at FROM error_groups") == [{"fetched_at": None}]
    assert rows(database, "SELECT kind, json_path FROM etl_drift") == []


def test_what_is_forgotten_while_its_error_group_is_read_stays_forgotten(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkly.put_error_group(error_group(1))
    with_groups(checkly, 1, 1)
    fetch = Client.fetch_error_group

    def forget_meanwhile(client: Client, error_group_id: str) -> Any:
        document = fetch(client, error_group_id)
        database.run(lambda c: upkeep.forget_test_session(c, uuid(1)))
        return document

    monkeypatch.setattr(Client, "fetch_error_group", forget_meanwhile)
    assert pipeline.sync(make()).exit_code == 0
    assert scalar(database, "SELECT count(*) FROM error_groups") == 0
    assert scalar(database, "SELECT count(*) FROM etl_payloads") == 0


def test_an_error_group_may_be_forgotten_while_another_session_that_refers_to_it_is_saved(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.is_sqlite:
        pytest.skip("one writer at a time")
    checkly.put_error_group(error_group(1))
    with_groups(checkly, 1, 1)
    pipeline.sync(make())
    with_groups(checkly, 2, 1)
    insert_or_keep = bulk.insert_or_keep

    def forget_then(connection: Connection, table: Table, new: Any) -> None:
        insert_or_keep(connection, table, new)
        if table is tables.error_groups and scalar(database, "SELECT count(*) FROM test_sessions") == 1:
            database.run(lambda c: upkeep.forget_test_session(c, uuid(1)))

    monkeypatch.setattr(bulk, "insert_or_keep", forget_then)
    assert pipeline.sync(make()).exit_code == 0
    links = rows(database, "SELECT test_session_id FROM test_session_error_groups")
    assert [str(row["test_session_id"]) for row in links] == [uuid(2)]


def test_a_page_that_holds_an_error_group_twice_is_read(make: Make, checkly: Simulator, database: Database) -> None:
    for group in (1, 2, 3):
        checkly.put_error_group(error_group(group))
    with_groups(checkly, 1, 1, 2, 3)
    page = [error_group(1), error_group(2), error_group(1, errorHash="the last one counts"), error_group(3)]
    checkly.faults.add(Fault("status", match=r"error-groups(\?|$)", status=200, body=json.dumps(page)))
    assert saved(pipeline.sync(make())) == 1
    read = rows(database, "SELECT error_hash FROM error_groups WHERE fetched_at IS NOT NULL ORDER BY error_group_id")
    assert len(read) == 3
    assert read[0]["error_hash"] == "the last one counts"


def test_error_groups_that_cannot_be_read_hold_no_session_back_and_are_asked_for_again(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_error_group(error_group(1))
    with_groups(checkly, 1, 1)
    checkly.add_fault(match="error-groups", kind="status", status=500)
    outcome = pipeline.sync(make())
    assert (saved(outcome), outcome.exit_code) == (1, 1)
    checkly.clear_faults()
    assert pipeline.sync(make()).word == "ok"
    assert scalar(database, "SELECT cleaned_error_message FROM error_groups") == "Error: expected <n> to be <n>"


def test_a_known_group_that_could_not_be_read_again_is_asked_for_in_the_next_pass(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_error_group(error_group(1))
    with_groups(checkly, 1, 1)
    pipeline.sync(make())
    later = error_group(1, lastSeen="2026-11-14T12:00:00.000Z", environments=["staging"])
    checkly.put_error_group(later)
    newer = detail(2, startedAt="2026-11-14T12:00:00.000Z", errorGroupIds=[later["id"]])
    checkly.put_test_session(newer, entry(2))
    checkly.add_fault(match="error-groups", kind="status", status=500)
    assert pipeline.sync(make()).exit_code == 1
    assert rows(database, "SELECT environment FROM error_group_environments") == [{"environment": "production"}]

    checkly.clear_faults()
    for calls in (1, 0):  # once, though no session has come since that refers to it
        checkly.clear_requests()
        assert pipeline.sync(make()).word == "ok"
        assert sum("error-groups" in path for path in paths(checkly)) == calls
        assert rows(database, "SELECT environment FROM error_group_environments") == [{"environment": "staging"}]


# --- replay -------------------------------------------------------------------------------------------------------


def test_a_replay_rebuilds_every_row_without_the_api(
    make_etl: Make, simulator: Simulator, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy import text

    etl = make_etl()
    pipeline.sync(etl)
    before = content(database)
    with database.writing() as connection:
        connection.execute(text("UPDATE test_sessions SET name = 'damaged', provider = NULL"))
        connection.execute(text("DELETE FROM check_executions"))
        connection.execute(text("UPDATE test_session_results SET check_name = 'damaged'"))
        connection.execute(text("UPDATE error_groups SET error_hash = NULL"))
    assert content(database) != before
    simulator.clear_requests()
    caplog.clear()
    outcome = pipeline.replay(etl)
    assert outcome.word == "ok"
    assert caplog.messages == []
    assert simulator.requests == []
    assert content(database) == before


def test_a_replay_tells_how_many_test_sessions_have_no_stored_document(
    make: Make, checkly: Simulator, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    pipeline.sync(make(CHECKLY_ETL_EXPORT__KEEP_PAYLOADS="false"))
    outcome = pipeline.replay(make())
    assert (saved(outcome), outcome.exit_code) == (0, 0)
    assert (
        "without a stored document (export.keep_payloads, prune): 2; their executions are folded again" in caplog.text
    )
    assert "backfill --force --since" in caplog.text


def test_a_replay_leaves_rows_alone_that_are_newer_than_their_stored_payload(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    pipeline.sync(make())
    checkly.put_test_session(detail(1, name="newer"), None)
    enqueue(database, 1)
    pipeline.sync(make(CHECKLY_ETL_EXPORT__KEEP_PAYLOADS="false"))
    outcome = pipeline.replay(make())
    assert outcome.exit_code == 1
    assert "backfill --force" in str(outcome.error)
    assert scalar(database, "SELECT name FROM test_sessions") == "newer"


def test_the_document_of_a_dead_letter_is_kept_until_a_release_can_read_it(
    make: Make, checkly: Simulator, database: Database
) -> None:
    from sqlalchemy import text

    checkly.put_test_session(detail(1, results=[result(1, status=5)]), entry(1))
    checkly.put_test_session(detail(2, name=7), entry(2))
    pipeline.sync(make())
    assert scalar(database, "SELECT count(*) FROM etl_payloads WHERE kind = 'test_session'") == 2
    outcome = pipeline.replay(make())
    assert (saved(outcome), outcome.exit_code) == (0, 1)

    with database.writing() as connection:  # as if this release had learnt to read it
        mend = text("UPDATE etl_payloads SET body = replace(body, :wrong, :right)")
        for colon in (":", ": "):
            connection.execute(mend, {"wrong": f'"status"{colon}5', "right": f'"status"{colon}"PASSED"'})
        connection.execute(
            text("UPDATE etl_queue SET state = 'discarded' WHERE test_session_id = :id"), {"id": uuid(2)}
        )
    assert saved(pipeline.replay(make())) == 1
    assert queue(database) == {uuid(2): "discarded"}
    assert rows(database, "SELECT provider FROM test_sessions") == [{"provider": "GITHUB"}]


def test_a_session_that_the_database_refuses_stops_no_other(
    make: Make, checkly: Simulator, database: Database, engine_name: str
) -> None:
    from sqlalchemy import text

    with database.writing() as connection:
        if engine_name == "sqlite":
            connection.execute(
                text(
                    "CREATE TRIGGER refuse BEFORE INSERT ON test_sessions WHEN NEW.name = 'session 3'"
                    " BEGIN SELECT RAISE(ABORT, 'no'); END"
                )
            )
        else:
            connection.execute(text("ALTER TABLE test_sessions ADD CONSTRAINT refuse CHECK (name <> 'session 3')"))
    for number in range(1, 7):
        checkly.put_test_session(detail(number), entry(number))
    try:
        with pytest.raises(Exception, match=r"refuse|no|constraint"):
            pipeline.sync(make())
    finally:
        if engine_name == "postgresql":
            with database.writing() as connection:
                connection.execute(text("ALTER TABLE test_sessions DROP CONSTRAINT refuse"))
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 5
    assert rows(database, "SELECT test_session_id, attempts, error_kind FROM etl_queue") in (
        [{"test_session_id": uuid(3), "attempts": 1, "error_kind": "bug"}],
        [{"test_session_id": UUID(uuid(3)), "attempts": 1, "error_kind": "bug"}],
    )
    assert rows(database, "SELECT outcome FROM etl_runs") == [{"outcome": "failed"}]


def test_an_end_at_the_end_of_time_stops_nothing(make: Make, checkly: Simulator, database: Database) -> None:
    for number in range(1, 4):
        checkly.put_test_session(detail(number), None)
    checkly.put_test_session(detail(2, stoppedAt="9999-12-31T23:59:59Z"), None)
    enqueue(database, 1, 2, 3)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert (saved(outcome), outcome.word) == (3, "ok")


def test_an_unusable_document_of_an_error_group_is_asked_for_again(
    make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_error_group(error_group(1, environments="prod"))
    with_groups(checkly, 1, 1)
    assert pipeline.sync(make()).exit_code == 0
    assert rows(database, "SELECT fetched_at FROM error_groups") == [{"fetched_at": None}]
    assert rows(database, "SELECT json_path FROM etl_drift") == [{"json_path": "$.environments"}]
    checkly.put_error_group(error_group(1))
    pipeline.sync(make())
    assert scalar(database, "SELECT error_hash FROM error_groups") == "hash"


# --- runs and accounts --------------------------------------------------------------------------------------------


def test_the_row_of_the_run_holds_its_counters(make_etl: Make, database: Database) -> None:
    outcome = pipeline.sync(make_etl())
    row = rows(database, "SELECT * FROM etl_runs")[0]
    assert (row["command"], row["outcome"], row["error"]) == ("sync", "ok", None)
    assert {name: row[name] for name in outcome.counters} == outcome.counters
    assert row["finished_at"] is not None


def test_a_refused_account_does_not_stop_the_others(
    make_etl: Make, small_world: World, database: Database, tmp_path: Any
) -> None:
    import os

    from etl import config

    other = "44444444-4444-4444-8444-444444444444"
    file = tmp_path / "accounts.yaml"
    file.write_text(
        f"checkly:\n  retention: 3600d\n  accounts:\n    - {{id: {other}, api_key_env: OTHER_KEY}}\n"
        f"    - {{id: {ACCOUNT}, api_key_env: OUR_KEY}}\n"
    )
    with Simulator(accounts={ACCOUNT: small_world}, rate_limit=0) as simulator:
        env = {"OTHER_KEY": "a", "OUR_KEY": "b", "CHECKLY_API_URL": simulator.url}
        etl = make_etl()
        etl.settings = config.load(file, {**env, "PATH": os.environ["PATH"]})
        outcome = pipeline.sync(etl)
    assert outcome.exit_code == 3
    assert other in str(outcome.error)
    assert saved(outcome) > 0
    succeeded = rows(database, "SELECT account_id FROM etl_accounts WHERE last_success_at IS NOT NULL")
    assert [str(row["account_id"]) for row in succeeded] == [ACCOUNT]


# --- no work for nothing --------------------------------------------------------------------------------------


def test_what_is_held_already_is_not_normalized_again(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 9):
        checkly.put_test_session(detail(number, results=[result(1)]), entry(number))
    etl = make()
    assert saved(pipeline.backfill(etl, since=LONG_AGO, until=None)) == 8
    before = content(database)
    normalized: list[str] = []
    whole = normalize.normalize_test_session

    def noted(document: Any, *, test_session_id: str, **more: Any) -> Any:
        normalized.append(test_session_id)
        return whole(document, test_session_id=test_session_id, **more)

    monkeypatch.setattr(normalize, "normalize_test_session", noted)
    checkly.put_test_session(detail(3, results=[result(1), result(2)]), entry(3))
    again = pipeline.backfill(etl, since=LONG_AGO, until=None, force=True)
    assert normalized == [uuid(3)]
    assert (saved(again), again.counters["test_sessions_unchanged"]) == (1, 7)
    after = content(database)
    assert len(after.pop("test_session_results")) == len(before.pop("test_session_results")) + 1
    assert [row for row in after["test_sessions"] if uuid(3) not in map(str, row)] == [
        row for row in before["test_sessions"] if uuid(3) not in map(str, row)
    ]


def test_what_came_together_is_recorded_together(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH_SECONDS", 60.0)
    at_once = 1 if database.is_sqlite else 2
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH", 10 * at_once)
    for number in range(1, 26):
        checkly.put_test_session(detail(number), entry(number))
    etl = make()
    transactions: list[int] = []
    lock = session_queue.lock

    def counted(connection: Any, claims: Any) -> Any:
        transactions.append(len(claims))
        return lock(connection, claims)

    monkeypatch.setattr(session_queue, "lock", counted)  # the first thing that each of them does
    assert saved(pipeline.backfill(etl, since=LONG_AGO, until=None)) == 25
    assert sum(transactions) == 25
    assert len(transactions) <= 4


def test_where_two_batches_are_written_at_once_each_holds_half_as_many_that_are_new(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH_SECONDS", 60.0)
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH", 40)
    for number in range(1, 41):
        checkly.put_test_session(detail(number), entry(number))
    lock = session_queue.lock
    transactions: list[int] = []

    def counted(connection: Any, claims: Any) -> Any:
        transactions.append(len(claims))
        return lock(connection, claims)

    monkeypatch.setattr(session_queue, "lock", counted)
    etl = make(CHECKLY_ETL_EXPORT__CONCURRENCY="1")  # they come one by one
    assert saved(pipeline.backfill(etl, since=LONG_AGO, until=None)) == 40
    assert len(transactions) == (1 if database.is_sqlite else 2)
    transactions.clear()
    pipeline.backfill(etl, since=LONG_AGO, until=None, force=True)
    assert transactions == [40], "what is held is nothing to write"


def test_the_next_sessions_are_fetched_while_a_batch_is_written(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH", 20)
    for number in range(1, 41):
        checkly.put_test_session(detail(number), entry(number))
    checkly.faults.add(Fault("delay", match="/v1/test-sessions/", seconds=0.05))
    lock = session_queue.lock
    batches = 0
    fetched_meanwhile: list[bool] = []

    def waiting(connection: Any, claims: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 1:
            before = len(checkly.requests)
            until = time.monotonic() + 10
            while len(checkly.requests) < before + 5 and time.monotonic() < until:
                time.sleep(0.01)
            fetched_meanwhile.append(len(checkly.requests) >= before + 5)
        return lock(connection, claims)

    monkeypatch.setattr(session_queue, "lock", waiting)  # the first thing that a batch does
    etl = make(CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE="0")
    assert saved(pipeline.backfill(etl, since=LONG_AGO, until=None)) == 40
    assert fetched_meanwhile == [True]


def test_claims_are_taken_before_the_last_ones_are_fetched(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 41):
        checkly.put_test_session(detail(number), entry(number))
    checkly.faults.add(Fault("delay", match="/v1/test-sessions/", seconds=0.02))
    claim = session_queue.claim
    to_fetch: list[int] = []  # of what was claimed before, at each claim
    claimed = 0

    def counted(connection: Any, **options: Any) -> Any:
        nonlocal claimed
        to_fetch.append(claimed - sum(fetches(checkly, number) for number in range(1, 41)))
        found = claim(connection, **options)
        claimed += len(found)
        return found

    monkeypatch.setattr(session_queue, "claim", counted)
    etl = make(CHECKLY_ETL_EXPORT__BATCH_SIZE="10")
    assert saved(pipeline.backfill(etl, since=LONG_AGO, until=None)) == 40
    assert to_fetch[0] == 0
    assert all(0 < number <= 10 for number in to_fetch[1:4])
    assert not queue(database)


@pytest.mark.parametrize(("batch_size", "concurrency"), [("1", "1"), ("1", "8"), ("2", "3"), ("500", "1")])
def test_every_session_is_exported_however_few_are_claimed_at_once(
    make: Make, checkly: Simulator, database: Database, batch_size: str, concurrency: str
) -> None:
    for number in range(1, 14):
        checkly.put_test_session(detail(number), entry(number))
    etl = make(CHECKLY_ETL_EXPORT__BATCH_SIZE=batch_size, CHECKLY_ETL_EXPORT__CONCURRENCY=concurrency)
    assert saved(pipeline.backfill(etl, since=LONG_AGO, until=None)) == 13
    assert [fetches(checkly, number) for number in range(1, 14)] == [1] * 13
    assert not queue(database)


def test_nothing_waits_for_what_does_not_come(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH_SECONDS", 3600.0)
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH", 1000)
    for number in range(1, 7):
        checkly.put_test_session(detail(number), entry(number))
    enqueue(database, 7)  # nobody knows it
    outcome = pipeline.backfill(make(), since=LONG_AGO, until=None)
    assert saved(outcome) == 6
    assert queue(database) == {uuid(7): "dead"}


def test_a_session_that_was_forgotten_meanwhile_is_not_held(
    database: Database, make: Make, checkly: Simulator
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    pipeline.backfill(make(), since=LONG_AGO, until=None)
    with database.writing() as connection:
        held = warehouse.held_columns(connection, [uuid(1)])
        known = normalize.unchanged(held[uuid(1)])
        other = normalize.unchanged({**held[uuid(1)], "payload_sha256": "another"})
        assert warehouse.still_held(connection, [known]) == {uuid(1)}
        assert warehouse.still_held(connection, [other]) == set()
        connection.execute(text("DELETE FROM test_sessions"))
        assert warehouse.still_held(connection, [known]) == set()

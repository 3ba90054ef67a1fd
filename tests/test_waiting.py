"""`sync --wait`: one test session until it is final, and the exit code says whether its verdict is stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from etl import accounts, session_queue
from etl.database import Database
from etl.pipeline import blame
from etl.simulator import Simulator, World
from tests.conftest import ACCOUNT, Program, environment, rows, scalar
from tests.documents import detail, entry, result, running, uuid
from tests.harness import wait_until


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with what the test puts into it."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        yield serving


@pytest.fixture
def wait(program: Program, checkly: Simulator, warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    """checkly-etl with that Checkly; it does not wait for long."""
    program.env = environment(checkly.url, warehouse_url)
    monkeypatch.setattr("etl.pipeline.waiting.FIRST_POLL", 0.05)
    monkeypatch.setattr("etl.pipeline.waiting.LONGEST_POLL", 0.1)
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.01)
    return program


def later(checkly: Simulator, seconds: float = 1.0) -> threading.Timer:
    """The running session 1 fails after a while."""
    failed = detail(1, status="FAILED", results=[result(1), result(2, status="FAILED", hasFailures=True)])
    timer = threading.Timer(seconds, checkly.put_test_session, [failed])
    timer.start()
    return timer


def test_a_running_session_is_read_until_it_is_final_and_its_verdict_is_told(
    wait: Program, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(running(1))
    timer = later(checkly)
    run = wait("sync", "--wait", uuid(1), "--json")
    timer.join()
    assert run.code == 0, run.err
    assert run.json["test_sessions"] == [
        {"test_session_id": uuid(1), "status": "FAILED", "is_final": True, "verdict": "FAILED"}
    ]
    assert scalar(database, "SELECT status FROM test_sessions") == "FAILED"


def test_a_link_is_as_good_as_an_id_and_the_result_is_told_in_words(wait: Program, checkly: Simulator) -> None:
    checkly.put_test_session(detail(1))
    run = wait("sync", "--wait", f"https://app.checklyhq.com/accounts/{ACCOUNT}/test-sessions/{uuid(1)}")
    assert run.code == 0
    assert f"test session {uuid(1)} PASSED, verdict PASSED" in run.out


def test_nothing_else_is_exported_and_freshness_is_not_claimed(
    wait: Program, checkly: Simulator, database: Database
) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    wait("enqueue", uuid(3))
    assert wait("sync", "--wait", uuid(1)).code == 0
    assert [str(row["test_session_id"]) for row in rows(database, "SELECT * FROM test_sessions")] == [uuid(1)]
    assert {request.path for request in checkly.requests} == {f"/v1/test-sessions/{uuid(1)}"}
    assert scalar(database, "SELECT last_success_at FROM etl_accounts") is None
    assert scalar(database, f"SELECT state FROM etl_queue WHERE test_session_id = '{uuid(3)}'") == "queued"


def test_several_are_waited_for_together(wait: Program, checkly: Simulator) -> None:
    checkly.put_test_session(running(1))
    checkly.put_test_session(detail(2))
    timer = later(checkly, 0.5)
    run = wait("sync", "--wait", uuid(1), "--wait", uuid(2), "--json")
    timer.join()
    assert [row["status"] for row in run.json["test_sessions"]] == ["FAILED", "PASSED"]
    assert run.code == 0


def test_the_end_of_max_time_before_the_end_of_the_session_exits_1_and_the_next_sync_goes_on(
    wait: Program, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(running(1))
    run = wait("sync", "--wait", uuid(1), "--max-time", "2s", "--json")
    assert (run.code, run.json["outcome"]) == (1, "partial")
    assert "not final yet" in run.json["error"]
    assert run.json["test_sessions"][0]["status"] == "RUNNING"
    assert scalar(database, "SELECT state FROM etl_queue") == "queued"


def test_one_that_does_not_exist_exits_1_with_the_reason(wait: Program) -> None:
    run = wait("sync", "--wait", uuid(9))
    assert run.code == 1
    assert f"test session {uuid(9)} could not be exported" in run.err


def test_one_that_was_discarded_exits_1_and_stays_so(wait: Program, checkly: Simulator, database: Database) -> None:
    wait("enqueue", uuid(1))
    wait("sync")
    wait("dead", "discard", uuid(1))
    checkly.put_test_session(detail(1))
    run = wait("sync", "--wait", uuid(1))
    assert run.code == 1
    assert "enqueue --force" in run.err
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 0


def test_one_of_an_account_that_is_not_in_these_settings_is_told_from_one_that_comes_later(
    wait: Program, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1))
    with database.writing() as connection:
        accounts.register(connection, uuid(7), name="of another process", retention=timedelta(days=7))
    run = wait("sync", "--wait", f"https://app.checklyhq.com/accounts/{uuid(7)}/test-sessions/{uuid(1)}")
    assert run.code == 1
    assert f"test session {uuid(1)} is of account {uuid(7)}, which is not in these settings" in run.err
    assert scalar(database, "SELECT state FROM etl_queue") == "queued", "for whoever exports that account"


def test_one_that_is_no_id_is_wrong_usage(wait: Program) -> None:
    run = wait("sync", "--wait", "nonsense")
    assert run.code == 2
    assert "nonsense" in run.err


def test_one_that_fails_for_a_while_is_tried_again_as_any_other(
    wait: Program, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blame, "FIRST_RETRY", timedelta(seconds=0.2))
    checkly.put_test_session(detail(1))
    checkly.put_test_session(detail(2))
    checkly.add_fault(match=f"/v1/test-sessions/{uuid(1)}", kind="status", status=500, times=5)
    run = wait("sync", "--wait", uuid(1), "--max-time", "30s")
    assert run.code == 0, run.err
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 1


def test_one_that_another_worker_holds_is_waited_for(
    wait: Program, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkly.put_test_session(detail(1))
    database.run(lambda c: session_queue.enqueue(c, [uuid(1)]))
    claims = database.run(
        lambda c: session_queue.claim(c, account_id=ACCOUNT, limit=1, lease=timedelta(minutes=5), is_default=True)
    )
    # It is alive, in this very process; its claim ends when it gives it back.
    threading.Timer(1.0, lambda: database.run(lambda c: session_queue.release(c, claims))).start()
    began = time.monotonic()
    assert wait("sync", "--wait", uuid(1)).code == 0
    assert time.monotonic() - began >= 0.9
    wait_until(lambda: scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0)

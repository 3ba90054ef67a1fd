"""Recording beside fetching: whatever fails, and when, no claim is kept from the next worker."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import Connection, text

from etl import bulk, pipeline, session_queue, warehouse
from etl.database import Database
from etl.documents import Document
from etl.errors import WarehouseUnavailable
from etl.pipeline import Etl
from etl.pipeline.recording import Batch, Recorder
from etl.pipeline.run import AccountRun
from etl.session_queue import Claim
from etl.simulator import Simulator
from etl.simulator.faults import Fault
from etl.tables import etl_queue
from tests.conftest import rows, scalar
from tests.documents import detail, entry, uuid
from tests.test_bulk import only_postgresql, row
from tests.test_pass import checkly, empty_world, enqueue, make, saved

__all__ = ["checkly", "empty_world", "make"]  # fixtures

Make = Callable[..., Etl]
SESSIONS = 40
DETAIL = "^/v1/test-sessions/"


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten batches of four, or on PostgreSQL twenty of two."""
    monkeypatch.setattr(sys.modules["etl.pipeline.drain"], "BATCH", 4)


@pytest.fixture
def queued(checkly: Simulator, database: Database, few_at_once: None) -> Iterator[None]:
    """Forty sessions, known by id only; what is left of them is none that a worker holds."""
    for number in range(1, SESSIONS + 1):
        checkly.put_test_session(detail(number))
    enqueue(database, *range(1, SESSIONS + 1))
    yield
    states = [found["state"] for found in rows(database, "SELECT state FROM etl_queue")]
    assert states.count("leased") == 0
    assert scalar(database, "SELECT count(*) FROM test_sessions") + len(states) >= SESSIONS


def fails(monkeypatch: pytest.MonkeyPatch, nth: int, failure: Exception, before: Callable[[], object]) -> None:
    """The nth transaction fails, once, when the next batch is ready."""
    write, count = Recorder._write, 0

    def writing(self: Recorder, connection: Connection, batch: Batch) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            before()
            time.sleep(0.5)
            raise failure
        return write(self, connection, batch)

    monkeypatch.setattr(Recorder, "_write", writing)


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_batch_that_cannot_be_written_keeps_nobodys_claims(
    make: Make, queued: None, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    fails(monkeypatch, nth, WarehouseUnavailable("read only for a moment"), before=lambda: None)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert "read only for a moment" in (outcome.error or "")


@pytest.mark.parametrize("nth", [1, 2])
def test_a_signal_while_a_batch_fails_keeps_nobodys_claims(
    make: Make, queued: None, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    etl = make(CHECKLY_ETL_EXPORT__DISCOVER="false")
    fails(monkeypatch, nth, WarehouseUnavailable("read only for a moment"), before=etl.stop.set)
    assert pipeline.sync(etl).is_interrupted


def test_a_refused_key_while_a_batch_fails_keeps_nobodys_claims(
    make: Make, checkly: Simulator, queued: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkly.faults.add(Fault("status", match=DETAIL, status=401, skip=12))
    fails(monkeypatch, 2, WarehouseUnavailable("read only for a moment"), before=lambda: None)
    assert pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false")).failures


def test_two_batches_are_written_at_once_but_on_sqlite_and_both_are_counted(
    make: Make, database: Database, queued: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, add, lock = Recorder._write, warehouse.add_to_run, threading.Lock()
    at_once: list[int] = [0]

    def writing(self: Recorder, connection: Connection, batch: Batch) -> Any:
        with lock:
            at_once.append(at_once[-1] + 1)
        until = time.monotonic() + (0 if database.is_sqlite else 10)
        while max(at_once) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return write(self, connection, batch)

    def adding(*arguments: Any) -> None:
        with lock:
            at_once.append(at_once[-1] - 1)
        add(*arguments)

    monkeypatch.setattr(Recorder, "_write", writing)
    monkeypatch.setattr(warehouse, "add_to_run", adding)
    monkeypatch.setattr(warehouse, "end_run", lambda *_, **__: None)
    outcome = pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false"))
    assert max(at_once) == (1 if database.is_sqlite else 2)
    names = "test_sessions_saved, results_saved"
    (run,) = rows(database, f"SELECT {names} FROM etl_runs")
    assert run == {name: outcome.counters[name] for name in names.split(", ")}
    assert run["test_sessions_saved"] == SESSIONS


@pytest.mark.parametrize("nth", [0, 1])
def test_when_two_batches_fail_the_bug_is_raised_and_both_are_unwritten(
    monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    failures = [WarehouseUnavailable("read only for a moment"), RuntimeError("a bug")]
    ended: list[Batch] = []

    def failing(_: Recorder, batch: Batch) -> None:
        is_first = batch is batches[0]
        time.sleep(0.1 if is_first else 0.3)
        ended.append(batch)
        raise failures[is_first is (nth == 0)]

    claims = [Claim(uuid(number), "token", 0, datetime.now(UTC), None) for number in (1, 2)]
    batches = [Batch(released=[claim]) for claim in claims]
    monkeypatch.setattr(Recorder, "_record", failing)
    with ThreadPoolExecutor(2) as threads:
        recorder = Recorder(cast(AccountRun, None), threads, at_once=2)
        for batch in batches:
            recorder.record(batch)
        with pytest.raises(RuntimeError, match="a bug"):
            recorder.settle()
        assert ended == batches
        assert recorder.take_unwritten() == claims
        recorder.settle()


@pytest.mark.parametrize("verb", ["bury", "claim"])
def test_a_bug_beside_the_sessions_is_raised_when_the_claims_are_back(
    make: Make, checkly: Simulator, database: Database, queued: None, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    checkly.faults.add(Fault("status", match=f"{DETAIL}{uuid(20)}", status=400))
    real, failed = getattr(session_queue, verb), []

    def buggy(connection: Connection, *failures: Any, **options: Any) -> Any:
        done = real(connection, *failures, **options)
        if failures[0] if verb == "bury" else scalar(database, "SELECT count(*) > 0 FROM test_sessions"):
            failed.append(verb)
            raise RuntimeError("a bug")
        return done

    monkeypatch.setattr(session_queue, verb, buggy)
    with pytest.raises(RuntimeError, match="a bug"):
        pipeline.sync(make(CHECKLY_ETL_EXPORT__DISCOVER="false", CHECKLY_ETL_EXPORT__BATCH_SIZE="10"))
    assert failed


def test_what_was_released_after_a_stall_is_claimed_again(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 6):
        checkly.put_test_session(detail(number))
    enqueue(database, *range(1, 6))
    order = "SELECT test_session_id FROM etl_queue ORDER BY priority DESC, claim_order DESC, test_session_id DESC"
    for claimed in rows(database, order)[:2]:
        checkly.faults.add(Fault("delay", match=f"{DETAIL}{claimed['test_session_id']}", seconds=10))
    monkeypatch.setattr("etl.checkly.retry.TRIES", 1)
    etl = make(
        CHECKLY_ETL_EXPORT__DISCOVER="false",
        CHECKLY_ETL_EXPORT__CONCURRENCY="1",
        CHECKLY_ETL_EXPORT__LEASE="2s",
        CHECKLY_ETL_CHECKLY__TIMEOUT="3s",
    )
    assert saved(pipeline.sync(etl)) == 3


def test_a_large_document_is_let_go_before_the_next_is_fetched(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        checkly.put_test_session(detail(number, blob="x" * 5_000_000))
    enqueue(database, 1, 2, 3)
    alive: list[int] = []
    etl = make(CHECKLY_ETL_EXPORT__DISCOVER="false")
    drain = sys.modules["etl.pipeline.drain"]._Drain
    fetch = drain._fetch

    def fetching(self: Any, work: Any, alone: bool) -> Any:
        if alone:
            gc.collect()
            held = [found for found in gc.get_objects() if isinstance(found, Document)]
            alive.append(sum(len(found.body) > 4_000_000 for found in held))
        return fetch(self, work, alone)

    monkeypatch.setattr(drain, "_fetch", fetching)
    assert saved(pipeline.sync(etl)) == 3
    assert alive == [0, 0, 0]


@only_postgresql
@pytest.mark.parametrize("code", ["53100", "55P03"])
def test_what_the_server_says_of_a_copy_tells_no_data(
    database: Database, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr("etl.database.RETRY_SECONDS", 0.0)
    refuse = f"RAISE EXCEPTION 'no room' USING ERRCODE = '{code}', HINT = 'make some'"
    with database.writing() as connection:
        connection.execute(
            text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refuse}; END $$")
        )
        connection.execute(
            text("CREATE TRIGGER refuse BEFORE INSERT ON etl_queue FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
    with pytest.raises(WarehouseUnavailable, match="no room: make some") as caught:
        database.run(lambda c: bulk.insert(c, etl_queue, [row(1, summary="a customer's")]))
    assert "customer" not in str(caught.value)
    with database.writing() as connection:
        connection.execute(text("DROP TRIGGER refuse ON etl_queue"))
        connection.execute(text("DROP FUNCTION refuse"))


@only_postgresql
def test_a_replay_beside_a_worker_that_brings_back_what_was_deleted(
    make: Make, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    pipeline.sync(make())
    with database.writing() as connection:
        connection.execute(text("DELETE FROM test_sessions"))
    save, other = warehouse.save_test_sessions, make()
    words: list[str] = []

    def saving(connection: Connection, *arguments: Any, **options: Any) -> Any:
        if not words:  # the worker commits after replay's look, and before its first write
            words.append("")
            enqueue(database, 1)
            words[0] = pipeline.sync(other).word
        return save(connection, *arguments, **options)

    monkeypatch.setattr(warehouse, "save_test_sessions", saving)
    assert pipeline.replay(make()).word == "ok"
    assert words == ["ok"]
    assert scalar(database, "SELECT count(*) FROM test_session_results") == 2

"""The queue: what is due is claimed once, in order; a claim that is no longer ours changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from etl import documents, process, session_queue, warehouse
from etl.database import Database, now
from etl.normalize import normalize_test_session
from etl.session_queue import BACKFILL, DISCOVERY, Claim, Failure, Listed
from etl.simulator import World
from etl.tables import etl_queue
from tests.conftest import ACCOUNT, rows, scalar

OTHER = "44444444-4444-4444-8444-444444444444"
DAY = datetime(2026, 11, 1, tzinfo=UTC)
LEASE = timedelta(minutes=5)


def id_(number: int) -> str:
    return str(UUID(int=number))


def entry(number: int, *, hours: float | None = 0, version: int = 1) -> Listed:
    created_at = None if hours is None else DAY + timedelta(hours=hours)
    body = f'{{"id":"{id_(number)}","version":{version}}}'
    return Listed(id_(number), created_at, documents.read(body.encode()))


@pytest.fixture
def at(warehouse_url: str) -> Iterator[Callable[[float], Database]]:
    """The warehouse as it is seen so many minutes from now."""
    opened: dict[float, Database] = {}

    def after(minutes: float) -> Database:
        if minutes not in opened:
            opened[minutes] = Database(warehouse_url, clock_offset=timedelta(minutes=minutes), connections=4)
        return opened[minutes]

    yield after
    for database in opened.values():
        database.close()


def enlist(
    database: Database, *entries: Listed, source: str = DISCOVERY, account_id: str = ACCOUNT, **more: Any
) -> int:
    return database.run(
        lambda c: session_queue.enqueue_listed(c, entries, account_id=account_id, source=source, **more)
    )


def enqueue(database: Database, *numbers: int, force: bool = False) -> tuple[int, list[str]]:
    return database.run(lambda c: session_queue.enqueue(c, [id_(n) for n in numbers], force=force))


def claim(database: Database, limit: int = 100, account_id: str = ACCOUNT, is_default: bool = True) -> list[Claim]:
    return database.run(
        lambda c: session_queue.claim(c, account_id=account_id, limit=limit, lease=LEASE, is_default=is_default)
    )


def numbers(claims: list[Claim]) -> list[int]:
    return [UUID(claim.test_session_id).int for claim in claims]


def row(database: Database, number: int) -> dict[str, Any]:
    with database.reading() as connection:
        found = connection.execute(etl_queue.select().where(etl_queue.c.test_session_id == id_(number))).mappings()
        return dict(found.one())


def bury(database: Database, *claims: Claim, kind: str = "rejected") -> None:
    failures = {Failure(c.test_session_id, kind, "the API says no"): c.attempts + 1 for c in claims}
    database.run(lambda c: session_queue.bury(c, failures))


# --- order and accounts -------------------------------------------------------------------------------------


def test_what_somebody_waits_for_comes_first_and_then_the_oldest(database: Database) -> None:
    enlist(database, entry(1, hours=1), entry(2, hours=0), source=BACKFILL)
    enlist(database, entry(3, hours=9), entry(4, hours=8), source=DISCOVERY)
    enqueue(database, 5)
    assert numbers(claim(database)) == [5, 4, 3, 2, 1]


def test_a_backfill_may_begin_with_the_newest(database: Database) -> None:
    enlist(database, entry(1, hours=1), entry(2, hours=3), entry(3, hours=2), source=BACKFILL, newest_first=True)
    assert numbers(claim(database, limit=2)) == [2, 3]
    assert numbers(claim(database)) == [1]


def test_an_enqueued_id_that_waits_already_is_moved_to_the_front(database: Database) -> None:
    enlist(database, entry(1), entry(2), source=BACKFILL)
    assert enqueue(database, 2) == (1, [])
    claims = claim(database)
    assert numbers(claims) == [2, 1]
    assert all(c.summary is not None for c in claims)


def test_an_account_claims_its_own_and_only_the_default_one_what_nobody_has(database: Database) -> None:
    enlist(database, entry(1), account_id=ACCOUNT)
    enlist(database, entry(2), account_id=OTHER)
    enqueue(database, 3)
    assert numbers(claim(database, account_id=OTHER, is_default=False)) == [2]
    assert row(database, 3)["account_id"] is None
    assert sorted(numbers(claim(database))) == [1, 3]
    assert row(database, 3)["account_id"] == ACCOUNT


def test_a_claim_brings_the_entry_as_received(database: Database) -> None:
    body = f'{{ "id" : "{id_(1)}", "name":"\\u0000 \\ud800 é" }}'.encode()
    enlist(database, Listed(id_(1), None, documents.read(body)))
    enqueue(database, 2)
    second, first = claim(database)
    assert second.summary is None
    assert first.summary is not None
    assert first.summary.body == body
    assert first.summary.sha256 == documents.read(body).sha256


def test_the_order_is_read_from_its_index(database: Database) -> None:
    """Else every claim of a long backfill would sort all that waits."""
    enlist(database, *(entry(n, hours=n) for n in range(1, 2001)), source=BACKFILL)
    if database.is_sqlite:
        seen: list[str] = []
        with database.writing() as connection:
            raw: Any = connection.connection.driver_connection
            raw.set_trace_callback(seen.append)
            session_queue.claim(connection, account_id=ACCOUNT, limit=5, lease=LEASE, is_default=True)
            raw.set_trace_callback(None)
            select = next(sql for sql in seen if sql.startswith("SELECT etl_queue"))
            plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {select}").all())
        assert "USING INDEX ix_etl_queue_claim" in plan
        assert "ORDER BY" not in plan
        return
    with database.writing() as connection:
        connection.execute(text("ANALYZE etl_queue"))
    assert numbers(claim(database, limit=5)) == [1, 2, 3, 4, 5]
    with database.writing() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    used = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'ix_etl_queue_claim'"
    assert scalar(database, used) >= 1


# --- leases -------------------------------------------------------------------------------------------------


def test_a_claimed_row_is_nobody_elses_until_its_lease_ends(at: Callable[[float], Database]) -> None:
    enlist(at(0), entry(1))
    (first,) = claim(at(0))
    assert claim(at(0)) == []
    assert claim(at(4.9)) == []
    (second,) = claim(at(5.1))
    assert second.token != first.token
    assert second.attempts == 0, "an expired lease is no failure"
    assert at(5.1).run(lambda c: session_queue.lock(c, [first])) == set()
    assert at(5.1).run(lambda c: session_queue.lock(c, [second])) == {id_(1)}


def test_renewing_keeps_a_claim_and_a_lost_one_stays_lost(at: Callable[[float], Database]) -> None:
    enlist(at(0), entry(1), entry(2))
    claims = claim(at(0))
    at(4).run(lambda c: session_queue.renew(c, claims, LEASE))
    assert claim(at(8)) == []
    assert len(claim(at(9.1))) == 2
    at(9.1).run(lambda c: session_queue.renew(c, claims, timedelta(days=9)))
    assert len(claim(at(14.3))) == 2


def test_two_workers_never_get_the_same_row(database: Database, warehouse_url: str) -> None:
    enlist(database, *(entry(n, hours=n) for n in range(1, 301)))
    second = Database(warehouse_url)
    begun = threading.Barrier(4)
    got: list[int] = []

    def work(mine: Database) -> None:
        begun.wait()
        while claims := claim(mine, limit=7):
            got.extend(numbers(claims))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (database, second) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 301))
    second.close()


def test_rows_that_another_worker_is_taking_are_skipped_and_not_waited_for(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("one writer at a time")
    enlist(database, *(entry(n, hours=n) for n in range(1, 6)))
    with database.writing() as connection:
        first = session_queue.claim(connection, account_id=ACCOUNT, limit=2, lease=LEASE, is_default=True)
        with database.writing() as other:  # while the first transaction is open
            other.execute(text("SET LOCAL lock_timeout = '1s'"))
            second = session_queue.claim(other, account_id=ACCOUNT, limit=2, lease=LEASE, is_default=True)
    assert numbers(first) == [1, 2]
    assert numbers(second) == [3, 4]


def test_released_claims_are_due_and_unblamed(database: Database) -> None:
    enlist(database, entry(1), entry(2))
    claims = claim(database)
    database.run(lambda c: session_queue.retry(c, {Failure(id_(1), "unavailable", "x"): (3, DAY)}))
    (again,) = claim(database)
    assert again.attempts == 3
    assert database.run(lambda c: session_queue.release(c, [*claims, again])) == 2
    assert row(database, 1)["claimed_by"] is None
    assert [(c.attempts) for c in sorted(claim(database), key=lambda c: c.test_session_id)] == [3, 0]


def test_what_may_be_at_fault_comes_last_until_it_is_saved(database: Database) -> None:
    enlist(database, entry(1, hours=1), entry(2, hours=2), entry(3, hours=3))
    enqueue(database, 4)
    before = row(database, 1)
    for _ in range(2):  # once is as far behind as twice
        suspects = [one for one in claim(database) if one.test_session_id in (id_(1), id_(4))]
        assert database.run(partial(session_queue.release, claims=suspects, last=True)) == 2
        database.run(session_queue.release_dead)
        with database.writing() as connection:
            connection.execute(text("UPDATE etl_queue SET state = 'queued', available_at = enqueued_at"))
    last = claim(database)
    assert numbers(last) == [2, 3, 1, 4]
    assert {one.attempts for one in last} == {0}
    database.run(lambda c: session_queue.defer(c, {one.test_session_id: DAY for one in last}))
    assert numbers(claim(database)) == [1, 2, 3, 4]
    assert (row(database, 1)["priority"], row(database, 1)["claim_order"]) == (
        before["priority"],
        pytest.approx(before["claim_order"], abs=0.01),
    )


def test_what_a_killed_process_held_is_due_at_once_and_what_a_living_one_holds_is_not(database: Database) -> None:
    enlist(database, entry(1), entry(2), entry(3))
    claim(database)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with database.writing() as connection:
        name = text("UPDATE etl_queue SET claimed_by = :name WHERE test_session_id = :id")
        connection.execute(name, {"name": process.name_of(sleeper.pid), "id": id_(1)})
        connection.execute(name, {"name": f"elsewhere.invalid/{sleeper.pid}", "id": id_(2)})
    try:
        assert database.run(session_queue.release_dead) == 0
        sleeper.send_signal(signal.SIGKILL)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert database.run(session_queue.release_dead) == 1
    assert numbers(claim(database)) == [1]
    assert database.run(session_queue.release_dead) == 0


@pytest.mark.parametrize("name", ["", "/", "/1", "{HOST}/{PID}x/1", "elsewhere/1/1", "{HOST}/-1/1"])
def test_of_a_strange_name_nothing_is_known(name: str) -> None:
    host, pid, _ = process.NAME.split("/")
    assert not process.has_died(name.format(HOST=host, PID=pid))


def test_a_killed_process_is_dead_before_its_parent_has_noticed() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    name = process.name_of(sleeper.pid)
    try:
        assert not process.has_died(name)
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, and stays one
        assert process.has_died(name)
    finally:
        sleeper.wait()


def test_another_process_with_the_number_of_a_dead_one_does_not_hold_its_claims() -> None:
    host, pid, started = process.NAME.split("/")
    assert not process.has_died(process.NAME)
    assert process.has_died(f"{host}/{pid}/{int(started) - 1}")


# --- a claim that is not ours any more ----------------------------------------------------------------------


def outcomes(number: int) -> dict[str, Callable[[Connection], object]]:
    failure = Failure(id_(number), "unavailable", "x")
    return {
        "ack": lambda c: session_queue.ack(c, [id_(number)]),
        "defer": lambda c: session_queue.defer(c, {id_(number): DAY}),
        "retry": lambda c: session_queue.retry(c, {failure: (1, DAY)}),
        "bury": lambda c: session_queue.bury(c, {failure: 1}),
    }


def test_a_changed_entry_takes_the_row_away_from_its_worker(database: Database) -> None:
    enlist(database, entry(1), entry(2))
    claims = claim(database)
    assert enlist(database, entry(1, version=2), entry(2)) == 1
    assert database.run(lambda c: session_queue.lock(c, claims)) == {id_(2)}
    assert database.run(lambda c: session_queue.release(c, claims)) == 1
    found = {UUID(c.test_session_id).int: c for c in claim(database)}
    assert found[1].summary == entry(1, version=2).summary
    assert found[2].summary == entry(2).summary


def test_force_takes_a_leased_row_away_and_a_plain_enqueue_does_not(database: Database) -> None:
    enlist(database, entry(1))
    claims = claim(database)
    assert enqueue(database, 1) == (1, [])
    assert database.run(lambda c: session_queue.lock(c, claims)) == {id_(1)}
    assert enqueue(database, 1, force=True) == (1, [])
    assert database.run(lambda c: session_queue.lock(c, claims)) == set()
    assert numbers(claim(database)) == [1]


def test_locked_claims_cannot_be_taken_away_before_the_ack(database: Database) -> None:
    enlist(database, entry(1))
    claims = claim(database)
    done: list[str] = []

    def change() -> None:
        enlist(database, entry(1, version=2))
        done.append("changed")

    thread = threading.Thread(target=change)
    with database.writing() as connection:
        assert session_queue.lock(connection, claims) == {id_(1)}
        thread.start()
        thread.join(timeout=0.3)
        assert done == []
        session_queue.ack(connection, [id_(1)])
    thread.join()
    # The change came after the ack: it is new work.
    assert row(database, 1)["state"] == "queued"
    assert row(database, 1)["summary"] == entry(1, version=2).summary.text


@pytest.mark.parametrize("verb", list(outcomes(1)))
def test_outcomes_touch_the_rows_that_they_name_and_no_others(database: Database, verb: str) -> None:
    enlist(database, entry(1), entry(2))
    claim(database)
    before = row(database, 2)
    database.run(outcomes(1)[verb])
    assert row(database, 2) == before
    assert scalar(database, "SELECT count(*) FROM etl_queue") == (1 if verb == "ack" else 2)


# --- what became of it --------------------------------------------------------------------------------------


def test_a_deferred_row_waits_and_forgets_its_failures(at: Callable[[float], Database]) -> None:
    enlist(at(0), entry(1))
    claim(at(0))
    at(0).run(lambda c: session_queue.retry(c, {Failure(id_(1), "unavailable", "x"): (4, DAY)}))
    claim(at(0))
    with at(0).writing() as connection:
        later = now(connection) + timedelta(minutes=10)
        session_queue.defer(connection, {id_(1): later}, source=session_queue.SETTLE)
    found = row(at(0), 1)
    assert (found["attempts"], found["error_kind"], found["last_error"]) == (0, None, None)
    assert (found["source"], found["claim_token"], found["claimed_by"]) == ("settle", None, None)
    assert found["summary"] is not None
    assert claim(at(9)) == []
    (again,) = claim(at(10.1))
    assert again.waiting_since == found["enqueued_at"]


def test_a_retried_row_comes_back_with_its_count_and_its_reason(at: Callable[[float], Database]) -> None:
    enlist(at(0), entry(1), entry(2))
    claim(at(0))
    with at(0).writing() as connection:
        later = now(connection) + timedelta(minutes=3)
        failures = {Failure(id_(n), "unavailable", "é" * 5000): (n, later) for n in (2, 1)}
        session_queue.retry(connection, failures)
    assert claim(at(2)) == []
    found = row(at(0), 2)
    assert (found["attempts"], found["error_kind"], found["last_error"]) == (2, "unavailable", "é" * 1000)
    assert found["last_error_at"] is not None
    assert sorted(c.attempts for c in claim(at(3.1))) == [1, 2]


def test_an_enqueue_forgives_failures(database: Database) -> None:
    enlist(database, entry(1))
    claim(database)
    database.run(lambda c: session_queue.retry(c, {Failure(id_(1), "unavailable", "x"): (7, DAY)}))
    enqueue(database, 1)
    assert [c.attempts for c in claim(database)] == [0]


# --- what is listed -----------------------------------------------------------------------------------------


def test_an_entry_is_queued_if_it_is_new_or_changed_and_once(database: Database) -> None:
    assert enlist(database, entry(1), entry(2), entry(1)) == 2
    assert enlist(database, entry(1), entry(2)) == 0
    assert enlist(database, entry(1, version=2), entry(3)) == 2
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 3
    assert enlist(database, entry(1, version=2), force=True) == 1


def test_an_entry_that_the_warehouse_holds_is_not_queued_again(database: Database, small_world: World) -> None:
    numbered = [entry(n) for n in range(3)]
    with database.writing() as connection:
        for listed in numbered[:2]:
            body = (
                f'{{"testSessionId":"{listed.test_session_id}","status":"PASSED","startedAt":"2026-11-01T00:00:00Z"}}'
            )
            saved = normalize_test_session(
                documents.read(body.encode()),
                test_session_id=listed.test_session_id,
                account_id=ACCOUNT,
                held={"summary_sha256": listed.summary.sha256},
            )
            warehouse.save_test_sessions(connection, [saved], {}, etl_run_id=None)
    changed = [entry(0, version=2), numbered[1], numbered[2]]
    with database.reading() as connection:
        assert session_queue.count_wanted(connection, numbered) == 1
        assert session_queue.count_wanted(connection, changed) == 2
    assert enlist(database, *numbered) == 1
    assert enlist(database, *changed) == 1
    with database.reading() as connection:
        assert session_queue.count_wanted(connection, changed) == 0
    assert enlist(database, *numbered[:2], source=BACKFILL, force=True) == 2


def test_an_id_that_was_enqueued_gets_its_entry_when_it_is_listed(database: Database) -> None:
    enqueue(database, 1)
    assert enlist(database, entry(1)) == 1
    found = row(database, 1)
    assert found["summary_sha256"] == entry(1).summary.sha256
    assert (found["account_id"], found["session_created_at"], found["priority"]) == (ACCOUNT, DAY, 10)
    assert enlist(database, entry(1)) == 0


def test_a_row_that_comes_in_while_we_look_is_not_doubled(database: Database) -> None:
    threads = [threading.Thread(target=enlist, args=(database, *map(entry, range(50)))) for _ in range(4)]
    threads += [threading.Thread(target=enqueue, args=(database, *range(25, 75))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 75


# --- dead letters -------------------------------------------------------------------------------------------


def letters(database: Database, **more: Any) -> list[int]:
    with database.reading() as connection:
        return [UUID(d.test_session_id).int for d in session_queue.dead_letters(connection, **more)]


def make_dead(database: Database, *wanted: int) -> None:
    enlist(database, *(entry(n) for n in wanted))
    bury(database, *claim(database))


def test_dead_letters_say_what_and_why_and_are_not_claimed(database: Database) -> None:
    make_dead(database, 1, 2)
    assert claim(database) == []
    with database.reading() as connection:
        first, second = session_queue.dead_letters(connection)
        (alone,) = session_queue.dead_letters(connection, ids=[id_(2), id_(99)])
        assert session_queue.dead_letters(connection, ids=[]) == []
        assert session_queue.count_states(connection) == {"dead": 2}
        assert session_queue.count_due(connection, ACCOUNT, is_default=True) == 0
    assert alone == second
    assert first.test_session_id == id_(1)
    assert (first.account_id, first.state, first.source, first.attempts) == (ACCOUNT, "dead", "discovery", 1)
    assert (first.error_kind, first.last_error, first.session_created_at) == ("rejected", "the API says no", DAY)
    assert first.last_error_at is not None
    assert first.last_error_at >= first.enqueued_at


def test_a_dead_letter_is_revived_as_if_it_were_new(database: Database) -> None:
    make_dead(database, 1, 2, 3)
    assert database.run(lambda c: session_queue.revive(c, [id_(1), id_(9)])) == 1
    assert [(c.attempts, c.test_session_id) for c in claim(database)] == [(0, id_(1))]
    assert database.run(lambda c: session_queue.revive(c)) == 2
    assert sorted(numbers(claim(database))) == [2, 3]
    assert database.run(lambda c: session_queue.revive(c)) == 0


def test_what_is_revived_begins_to_wait_anew_and_what_waits_does_not(at: Callable[[float], Database]) -> None:
    make_dead(at(0), 1, 2)
    enqueue(at(0), 3)
    at(100).run(lambda c: session_queue.revive(c, [id_(1)]))
    enqueue(at(100), 2, 3)
    since = {number: row(at(0), number)["enqueued_at"] for number in (1, 2, 3)}
    assert min(since[1], since[2]) > since[3] + timedelta(minutes=90)


def test_only_force_brings_a_discarded_row_back(database: Database) -> None:
    make_dead(database, 1, 2)
    assert database.run(lambda c: session_queue.discard(c, [id_(1)])) == 1
    assert database.run(lambda c: session_queue.revive(c, [id_(1)])) == 0
    assert letters(database) == [2]
    assert letters(database, states=("dead", "discarded")) == [1, 2]
    assert enlist(database, entry(1)) == 0
    assert enlist(database, entry(1, version=2)) == 0
    assert enlist(database, entry(1, version=2), source=BACKFILL, force=True) == 0
    assert enqueue(database, 1, 3) == (1, [id_(1)])
    assert numbers(claim(database)) == [3]
    assert enqueue(database, 1, force=True) == (1, [])
    assert numbers(claim(database)) == [1]


def test_a_changed_entry_or_an_enqueue_revives_a_dead_row_and_the_same_entry_does_not(database: Database) -> None:
    make_dead(database, 1, 2)
    assert enlist(database, entry(1), entry(2)) == 0
    assert enlist(database, entry(1, version=2)) == 1
    assert enqueue(database, 2) == (1, [])
    assert sorted(numbers(claim(database))) == [1, 2]


def test_discarding_all_leaves_what_is_not_dead(database: Database) -> None:
    make_dead(database, 1, 2)
    enqueue(database, 3)
    assert database.run(lambda c: session_queue.discard(c)) == 2
    with database.reading() as connection:
        assert session_queue.count_states(connection) == {"discarded": 2, "queued": 1}


# --- many ---------------------------------------------------------------------------------------------------


def test_thousands_of_ids_at_once_stay_under_every_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import event

    most = 0

    def count(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        nonlocal most
        most = max(most, *(len(some) for some in (parameters if executemany else [parameters])), 0)

    event.listen(database.engine, "before_cursor_execute", count)
    many = range(2000)
    ids = [id_(n) for n in many]
    assert enqueue(database, *many) == (2000, [])
    assert enqueue(database, *many, force=True) == (2000, [])
    claims = claim(database, limit=2000)
    assert len(claims) == 2000
    database.run(lambda c: session_queue.renew(c, claims, LEASE))
    assert len(database.run(lambda c: session_queue.lock(c, claims))) == 2000
    assert enlist(database, *(entry(n) for n in many[:1000])) == 1000
    assert database.run(lambda c: session_queue.release(c, claims)) == 1000
    bury(database, *claim(database, limit=2000))
    assert len(letters(database, ids=ids)) == 2000
    assert database.run(lambda c: session_queue.revive(c, ids[:1500])) == 1500
    assert database.run(lambda c: session_queue.discard(c, ids)) == 500
    assert len(claim(database, limit=2000)) == 1500
    database.run(lambda c: session_queue.ack(c, ids))
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 0
    assert most <= 520


def test_due_rows_are_counted_for_an_account(at: Callable[[float], Database]) -> None:
    enlist(at(0), entry(1), entry(2))
    enlist(at(0), entry(3), account_id=OTHER)
    enqueue(at(0), 4)

    def due(minutes: float) -> int:
        with at(minutes).reading() as connection:
            return session_queue.count_due(connection, ACCOUNT, is_default=True)

    assert due(0) == 3
    claim(at(0), limit=2)
    assert due(0) == 1
    assert due(5.1) == 3


def test_rows_are_as_the_database_has_them(database: Database) -> None:
    enlist(database, entry(1))
    (found,) = rows(database, "SELECT state, priority, source, attempts, claim_token FROM etl_queue")
    assert found == {"state": "queued", "priority": 0, "source": "discovery", "attempts": 0, "claim_token": None}


# --- a clock that was set back ----------------------------------------------------------------------------------


def test_rows_of_any_state_written_in_the_future_are_told_once(at: Callable[[float], Database]) -> None:
    tomorrow = at(24)
    tomorrow.run(lambda c: session_queue.enqueue(c, [id_(number) for number in range(1, 5)]))
    claims = tomorrow.run(
        lambda c: session_queue.claim(c, account_id=ACCOUNT, limit=3, lease=timedelta(minutes=5), is_default=True)
    )
    dead = session_queue.Failure(claims[0].test_session_id, "payload", "x")
    tomorrow.run(lambda c: session_queue.bury(c, {dead: 1}))
    tomorrow.run(lambda c: session_queue.release(c, claims[1:2]))
    today = at(0)
    assert today.run(session_queue.is_ahead)
    today.run(lambda c: session_queue.forget_future(c, timedelta(minutes=5)))
    assert not today.run(session_queue.is_ahead)
    assert today.run(lambda c: session_queue.count_due(c, ACCOUNT, is_default=True)) == 3
    assert [letter.state for letter in today.run(session_queue.dead_letters)] == ["dead"]

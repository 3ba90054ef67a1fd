"""The rate budget is never exceeded and shared by all; a pause is everybody's; one process discovers at a time."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import text

from etl import accounts, process
from etl.accounts import Grant
from etl.database import Database, now
from etl.errors import Interrupted, RateLimited
from etl.pipeline.pacing import Pacer
from tests.conftest import ACCOUNT, rows, scalar

OTHER = "44444444-4444-4444-8444-444444444444"


@pytest.fixture
def at(warehouse_url: str) -> Iterator[Callable[[float], Database]]:
    """The warehouse as it is seen so many seconds from now."""
    opened: dict[float, Database] = {}

    def after(seconds: float) -> Database:
        for other, database in opened.items():
            if other not in (0, seconds):
                database.close()  # its pool only: a server has a hundred connections
        if seconds not in opened:
            opened[seconds] = Database(warehouse_url, clock_offset=timedelta(seconds=seconds), connections=2)
        return opened[seconds]

    for account_id in (ACCOUNT, OTHER):
        after(0).run(partial(accounts.register, account_id=account_id, name=None, retention=timedelta(days=7)))
    yield after
    for database in opened.values():
        database.close()


def take(database: Database, wanted: int = 1, per_minute: int = 10, account_id: str = ACCOUNT) -> Grant:
    return database.run(lambda c: accounts.take(c, account_id, wanted=wanted, per_minute=per_minute))


def pause(database: Database, seconds: float | None = None) -> float:
    return database.run(lambda c: accounts.pause(c, ACCOUNT, seconds))


# --- accounts -----------------------------------------------------------------------------------------------


def test_registering_again_takes_over_the_settings_and_leaves_the_rest(database: Database) -> None:
    database.run(lambda c: accounts.register(c, ACCOUNT, name="a", retention=timedelta(days=7)))
    database.run(lambda c: accounts.succeeded(c, ACCOUNT))
    database.run(lambda c: accounts.register(c, ACCOUNT, name="a", retention=timedelta(days=7)))
    database.run(lambda c: accounts.register(c, ACCOUNT, name=None, retention=timedelta(days=30)))
    (row,) = rows(database, "SELECT * FROM etl_accounts")
    assert row["name"] is None
    assert row["retention"] == 30 * 86400
    assert row["last_success_at"] is not None
    assert row["pauses"] == 0


# --- the budget ---------------------------------------------------------------------------------------------


def test_the_budget_may_be_spent_at_once_and_then_the_wait_is_the_windows(at: Callable[[float], Database]) -> None:
    assert take(at(0), wanted=7) == Grant(7)
    assert take(at(30), wanted=7) == Grant(3)
    spent = take(at(31), wanted=1)
    assert spent.calls == 0
    assert not spent.paused
    assert spent.wait == pytest.approx(30, abs=1)
    assert take(at(60), wanted=1).calls == 0
    assert take(at(62), wanted=10) == Grant(7)
    assert take(at(92), wanted=10) == Grant(3)


def test_the_budget_is_never_exceeded_in_any_61_seconds(at: Callable[[float], Database]) -> None:
    chosen = random.Random(5)
    granted: dict[str, int] = {}  # the window itself is forgotten: kept here, by its own times
    second = 0
    while second < 300:
        with at(second).writing() as connection:
            accounts.take(connection, ACCOUNT, wanted=chosen.randint(1, 6), per_minute=10)
            kept = connection.execute(text("SELECT CAST(granted_at AS text), calls FROM etl_rate_grants"))
            for moment, calls in kept:
                granted[moment] = calls
        second += chosen.choice([2, 5, 13])
    times = {datetime.fromisoformat(moment).timestamp(): calls for moment, calls in granted.items()}
    for start in times:
        assert sum(calls for at_, calls in times.items() if start <= at_ < start + 61) <= 10
    assert sum(times.values()) >= 40  # and it is used


def test_two_databases_share_one_budget_and_two_accounts_do_not(
    at: Callable[[float], Database], warehouse_url: str
) -> None:
    second = Database(warehouse_url)
    got: list[int] = []

    def spend(database: Database) -> None:
        for _ in range(10):
            got.append(take(database, per_minute=12).calls)

    threads = [threading.Thread(target=spend, args=(database,)) for database in (at(0), second) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 12
    assert take(at(0), per_minute=12, account_id=OTHER).calls == 1
    second.close()


def test_grants_that_left_the_window_are_forgotten(at: Callable[[float], Database]) -> None:
    for second in (0, 5, 10, 70, 140):
        take(at(second))
    assert scalar(at(0), "SELECT count(*) FROM etl_rate_grants") == 1


def test_a_limit_of_zero_is_no_limit_but_pauses_count(at: Callable[[float], Database]) -> None:
    assert take(at(0), wanted=10_000, per_minute=0) == Grant(10_000)
    assert scalar(at(0), "SELECT count(*) FROM etl_rate_grants") == 0
    pause(at(0), 30)
    assert take(at(0), per_minute=0).paused
    assert take(at(31), per_minute=0).calls == 1


# --- the pause ----------------------------------------------------------------------------------------------


def test_a_pause_is_as_long_as_the_api_says_and_holds_for_everybody(
    at: Callable[[float], Database], warehouse_url: str
) -> None:
    assert pause(at(0), 90) == pytest.approx(90)
    elsewhere = Database(warehouse_url)
    grant = take(elsewhere)
    assert grant.calls == 0
    assert grant.paused
    assert grant.wait == pytest.approx(90, abs=2)
    assert take(elsewhere, account_id=OTHER).calls == 1
    assert take(at(91)).calls == 1
    elsewhere.close()


def test_without_retry_after_pauses_double_to_a_minute_and_an_answer_makes_them_short_again(
    at: Callable[[float], Database],
) -> None:
    second, seen = 0.0, []
    for _ in range(7):
        left = pause(at(second))
        seen.append(round(left))
        second += left + 1
    assert seen == [5, 10, 20, 40, 60, 60, 60]
    at(second).run(lambda c: accounts.answered(c, ACCOUNT))
    assert round(pause(at(second))) == 5


def test_many_429_at_once_are_one_pause(at: Callable[[float], Database]) -> None:
    assert [round(pause(at(0))) for _ in range(8)] == [5] * 8
    assert scalar(at(0), "SELECT pauses FROM etl_accounts WHERE account_id = :id", id=ACCOUNT) == 1
    assert round(pause(at(7))) == 10


def test_a_shorter_pause_does_not_end_a_longer_one(at: Callable[[float], Database]) -> None:
    pause(at(0), 100)
    assert pause(at(0), 1) == pytest.approx(100, abs=2)
    assert pause(at(0)) == pytest.approx(100, abs=2)
    assert pause(at(0), 200) == pytest.approx(200, abs=2)


def test_an_answer_writes_nothing_where_there_was_no_pause(at: Callable[[float], Database]) -> None:
    if not at(0).is_sqlite:
        before = scalar(at(0), "SELECT xmin::text FROM etl_accounts WHERE account_id = :id", id=ACCOUNT)
        at(0).run(lambda c: accounts.answered(c, ACCOUNT))
        assert scalar(at(0), "SELECT xmin::text FROM etl_accounts WHERE account_id = :id", id=ACCOUNT) == before
        return
    with at(0).writing() as connection:
        before = connection.execute(text("SELECT total_changes()")).scalar_one()
        accounts.answered(connection, ACCOUNT)
        assert connection.execute(text("SELECT total_changes()")).scalar_one() == before


# --- discovery ----------------------------------------------------------------------------------------------

LEASE = timedelta(minutes=5)


def test_one_process_discovers_at_a_time_and_an_expired_lease_is_free(at: Callable[[float], Database]) -> None:
    first = at(0).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE))
    assert first is not None
    assert first.discovered_until is None
    assert at(0).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE)) is None
    assert at(299).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE)) is None
    assert at(0).run(lambda c: accounts.lease_discovery(c, OTHER, LEASE)) is not None
    assert at(200).run(lambda c: accounts.renew_discovery(c, first, LEASE))
    assert at(301).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE)) is None
    second = at(501).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE))
    assert second is not None
    assert not at(501).run(lambda c: accounts.renew_discovery(c, first, LEASE))
    assert not at(501).run(lambda c: accounts.finish_discovery(c, first, discovered_until=datetime.now(UTC)))
    assert scalar(at(0), "SELECT discovered_until FROM etl_accounts WHERE account_id = :id", id=ACCOUNT) is None
    assert at(501).run(lambda c: accounts.renew_discovery(c, second, LEASE))


def test_of_many_that_want_the_lease_at_once_one_gets_it(database: Database) -> None:
    database.run(lambda c: accounts.register(c, ACCOUNT, name=None, retention=timedelta(days=7)))
    begun = threading.Barrier(5)
    got: list[accounts.DiscoveryLease | None] = []

    def want() -> None:
        begun.wait()
        got.append(database.run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE)))

    threads = [threading.Thread(target=want) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 5
    assert sum(lease is not None for lease in got) == 1


def test_the_lease_of_a_process_that_died_is_free_at_once(at: Callable[[float], Database]) -> None:
    at(0).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = f"{process.NAME.rpartition('/')[0]}/{gone.pid}"
    with at(0).writing() as connection:
        connection.execute(text("UPDATE etl_accounts SET discovery_process = :name"), {"name": dead})
    assert at(0).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE)) is not None


def test_discovered_until_only_moves_forward_and_only_when_the_walk_ended(at: Callable[[float], Database]) -> None:
    day = datetime(2026, 3, 1, tzinfo=UTC)

    def discover(until: datetime | None) -> datetime | None:
        held = at(0).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE))
        assert held is not None, "finishing gives the lease back"
        assert at(0).run(lambda c: accounts.finish_discovery(c, held, discovered_until=until))
        again = at(0).run(lambda c: accounts.lease_discovery(c, ACCOUNT, LEASE))
        assert again is not None
        assert at(0).run(lambda c: accounts.finish_discovery(c, again, discovered_until=None))
        return again.discovered_until

    assert discover(None) is None
    assert discover(day) == day
    assert discover(day - timedelta(hours=1)) == day
    assert discover(None) == day
    assert discover(day + timedelta(hours=1)) == day + timedelta(hours=1)


# --- the pacer ----------------------------------------------------------------------------------------------


def pacer(database: Database, per_minute: int, stop: threading.Event | None = None) -> Pacer:
    return Pacer(database, ACCOUNT, per_minute, stop or threading.Event())


def test_threads_share_what_the_window_grants_and_wait_together(
    at: Callable[[float], Database], warehouse_url: str
) -> None:
    """Six threads, a budget of 20, of which 15 were spent 60 s ago: they come free within 1 s."""
    take(at(-60.3), wanted=15, per_minute=20)
    paced = pacer(at(0), 20)
    done: list[float] = []
    began = time.monotonic()

    def call() -> None:
        for _ in range(2):
            paced.acquire()
            done.append(time.monotonic() - began)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 12
    assert sum(moment < 0.3 for moment in done) == 5
    assert max(done) < 3
    assert 100 <= paced.throttled_ms <= 1500  # the time, not the sum over threads
    spent = scalar(at(0), "SELECT sum(calls) FROM etl_rate_grants")
    assert 12 <= spent <= 20


def test_a_long_wait_is_told_with_its_reason(at: Callable[[float], Database]) -> None:
    take(at(-50), wanted=1, per_minute=1)
    told: list[str] = []
    stop = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        stop.set()

    with pytest.raises(Interrupted):
        Pacer(at(0), ACCOUNT, 1, stop, tell).acquire()
    assert told == ["waiting 11 s: the rate budget is spent"]


def test_one_thread_asks_for_all_that_wait(at: Callable[[float], Database], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = accounts.take

    def counting(*args: object, wanted: int, **more: object) -> Grant:
        asked.append(wanted)
        time.sleep(0.05)  # while the others line up
        return original(*args, wanted=wanted, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(accounts, "take", counting)
    paced = pacer(at(0), 100)
    threads = [threading.Thread(target=paced.acquire) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(asked) >= 8
    assert len(asked) <= 3


def test_a_grant_that_is_not_used_soon_is_forfeited(at: Callable[[float], Database]) -> None:
    paced = pacer(at(0), 100)
    paced.acquire()
    with paced._lock:
        paced._granted = 50
        paced._granted_at -= 1
    paced.acquire()
    assert scalar(at(0), "SELECT sum(calls) FROM etl_rate_grants") == 2


def test_stopping_wakes_who_waits(at: Callable[[float], Database]) -> None:
    take(at(0), wanted=10)
    stop = threading.Event()
    paced = pacer(at(0), 10, stop)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            paced.acquire()
        except Interrupted as error:
            raised.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join(timeout=5)
    assert len(raised) == 3
    with pytest.raises(Interrupted):
        paced.acquire()


def test_a_long_pause_ends_the_pass_and_stays_stored(at: Callable[[float], Database]) -> None:
    paced = pacer(at(0), 0)
    with pytest.raises(RateLimited) as caught:
        paced.pause(3600)
    assert caught.value.seconds == pytest.approx(3600, abs=2)
    with pytest.raises(RateLimited, match="run again"):
        pacer(at(1), 0).acquire()
    pacer(at(3602), 0).acquire()


def test_a_short_pause_is_waited_for_and_an_answer_ends_the_doubling(at: Callable[[float], Database]) -> None:
    paced = pacer(at(0), 0)
    paced.acquire()
    paced.pause(0.4)
    began = time.monotonic()
    paced.acquire()
    assert time.monotonic() - began >= 0.35
    assert paced.throttled_ms >= 350
    paced.pause(None)
    assert scalar(at(0), "SELECT pauses FROM etl_accounts WHERE account_id = :id", id=ACCOUNT) == 1
    paced.answered()
    assert scalar(at(0), "SELECT pauses FROM etl_accounts WHERE account_id = :id", id=ACCOUNT) == 0


def test_without_a_limit_the_warehouse_is_asked_now_and_then_only(
    at: Callable[[float], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = accounts.take

    def counting(*args: object, **more: object) -> Grant:
        asked.append(1)
        return original(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(accounts, "take", counting)
    paced = pacer(at(0), 0)
    for _ in range(500):
        paced.acquire()
    assert len(asked) <= 3


def test_the_window_is_measured_by_the_databases_clock(at: Callable[[float], Database]) -> None:
    take(at(0))
    with at(0).reading() as connection:
        moment = now(connection)
        granted = connection.execute(text("SELECT granted_at FROM etl_rate_grants")).scalar_one()
    assert str(moment)[:10] == str(granted)[:10]

"""Many workers on one warehouse: they share the work, and whoever dies or sleeps loses and doubles nothing."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from etl import pipeline
from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import ACCOUNT, KEY, NOW, rows, scalar
from tests.documents import detail, entry, error_group, result, uuid
from tests.harness import (
    IS_AT_LENGTH,
    SECRETS,
    TIMES,
    Content,
    Worker,
    Workers,
    everything,
    rows_that_hold,
    same_rows,
    wait_until,
    workers,
)

BACKFILL = ("backfill", "--since", "3000d")
ROUNDS = min(1 + TIMES // 2, 3) if not IS_AT_LENGTH else 25  # of what takes several workers each
_CHECKOUT = Path(__file__).parents[2]
_DETAIL = re.compile(r"/v1/test-sessions/([0-9a-f-]{36})")
Peace = Callable[[World, str], Content]


@pytest.fixture(scope="session")
def wide_world() -> World:
    """Two pages of test sessions, with a fixed clock."""
    return World(seed=2, now=NOW, days=8)


@pytest.fixture(scope="session")
def _known() -> dict[tuple[int, str], Content]:
    return {}


@pytest.fixture
def peace_of(
    new_warehouse: Callable[[str], str],
    make_etl_at: Callable[[str, str], pipeline.Etl],
    _known: dict[tuple[int, str], Content],
) -> Peace:
    """(world, engine name) -> every row of a warehouse that exported it without any trouble."""

    def of(world: World, engine: str) -> Content:
        if (world.days, engine) not in _known:
            with Simulator(world, rate_limit=0) as simulator:
                _known[world.days, engine] = _exported(make_etl_at(simulator.url, new_warehouse(engine)))
        return _known[world.days, engine]

    return of


@pytest.fixture
def slow_checkly(wide_world: World) -> Iterator[Simulator]:
    """Checkly, a little slower, so that workers meet."""
    with Simulator(wide_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/", kind="delay", seconds=0.02)
        yield simulator


# --- nobody dies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["200", "7"])
def test_workers_of_all_kinds_share_the_work_and_fetch_every_test_session_once(
    batch_size: str,
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    wide_world: World,
    peace_of: Peace,
) -> None:
    """A batch size of 7 makes many claims, each of which another worker could take again."""
    url = new_warehouse(engine_name)
    with workers(slow_checkly.url, url, CHECKLY_ETL_EXPORT__BATCH_SIZE=batch_size) as some:
        crowd = [_named(some, *command) for command in [("sync",), BACKFILL] * 2]
        wait_until(lambda: len(_walkers(slow_checkly)) >= 1)
        _tell_no_secret_in_the_process_list(some)
        for worker in crowd:
            assert worker.wait() == 0, worker.err[-2000:]

    fetched = Counter(_fetched_ids(slow_checkly))
    assert len(fetched) == len(peace_of(wide_world, engine_name)["test_sessions"])
    assert {id_: times for id_, times in fetched.items() if times > 1} == {}
    busy = {_worker_of(request) for request in slow_checkly.requests if _DETAIL.fullmatch(request.path)}
    assert len(busy) >= min(2, 200 // int(batch_size)), "one worker did all the work: nothing was shared here"
    _equals_peace(url, peace_of(wide_world, engine_name))


def test_an_enqueue_in_the_middle_of_the_crowd_loses_and_doubles_nothing(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    wide_world: World,
    peace_of: Peace,
) -> None:
    """The enqueued ids are fetched once more at most for each enqueue, the others once."""
    url, chosen = new_warehouse(engine_name), random.Random(7)
    ids = _ids(wide_world)
    with workers(slow_checkly.url, url, CHECKLY_ETL_EXPORT__BATCH_SIZE="20") as some:
        enqueued: Counter[str] = Counter()
        # The first one comes before anybody knows the ids, the others in the middle of it.
        first = chosen.sample(ids, 20)
        assert some.run("enqueue", *first).process.returncode == 0
        enqueued.update(first)
        crowd = [_named(some, *command) for command in [("sync",), BACKFILL, ("sync",)]]
        for _ in range(TIMES):
            more = chosen.sample(ids, 20)
            enqueued.update(more)
            queueing = some.run("enqueue", "--force", *more)
            assert (queueing.process.returncode, queueing.out) == (0, "20 queued\n"), queueing.err
        for worker in crowd:
            assert worker.wait() == 0, worker.err[-2000:]
        last = some.run("sync")
        assert last.process.returncode == 0, last.err[-2000:]

    fetched = Counter(_fetched_ids(slow_checkly))
    too_often = {id_: times for id_, times in fetched.items() if times > 1 + 2 * enqueued[id_]}
    assert too_often == {}, "what nobody enqueued was fetched again"
    _equals_peace(url, peace_of(wide_world, engine_name))


def test_the_list_is_walked_by_one_process_at_a_time(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    wide_world: World,
    peace_of: Peace,
) -> None:
    """Of workers that start together one discovers; one that comes later may walk again, but never meanwhile."""
    slow_checkly.clear_faults()
    slow_checkly.add_fault(match=r"/v1/test-sessions\?", kind="delay", seconds=0.7)
    url = new_warehouse(engine_name)
    with workers(slow_checkly.url, url) as some:
        crowd = [_named(some, "sync", "-v") for _ in range(4)]
        for worker in crowd:
            assert worker.wait() == 0, worker.err[-2000:]
    walks = sorted(_walkers(slow_checkly).values())
    assert all(before[1] <= after[0] for before, after in pairwise(walks)), walks
    assert len(walks) < 4, "the walks were too fast to meet"
    assert "another process discovers" in "".join(worker.err for worker in crowd)
    _equals_peace(url, peace_of(wide_world, engine_name))


def test_backfills_and_a_forced_one_at_once_end_with_the_same_rows(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    wide_world: World,
    peace_of: Peace,
) -> None:
    """--force takes leased rows away from their workers: what these had fetched is dropped, not lost."""
    url = new_warehouse(engine_name)
    with workers(slow_checkly.url, url, CHECKLY_ETL_EXPORT__BATCH_SIZE="50") as some:
        crowd = [
            some.start(*BACKFILL),
            some.start(*BACKFILL, "--newest-first"),
            some.start(*BACKFILL, "--force"),
            some.start(*BACKFILL, "--force", "--newest-first"),
        ]
        for worker in crowd:
            assert worker.wait() == 0, worker.err[-2000:]
    fetched = Counter(_fetched_ids(slow_checkly))
    # Once for the first to queue it, once for each --force; and a drain may hold a claim that --force took away.
    assert max(fetched.values()) <= 5, fetched.most_common(3)
    _equals_peace(url, peace_of(wide_world, engine_name))


def test_error_groups_and_drift_that_all_write_at_the_same_time_are_written_without_a_deadlock(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    make_etl_at: Callable[[str, str], pipeline.Etl],
    small_world: World,
) -> None:
    """Every session refers to the same groups, in another order each, and has fields that nobody knows."""

    def crowded(simulator: Simulator) -> None:
        shuffled = random.Random(3)
        for number in range(12):
            simulator.put_error_group(error_group(number))
        groups = [error_group(number)["id"] for number in range(12)]
        for number in range(1, 121):
            mine = shuffled.sample(groups, 8)
            document = detail(
                number,
                errorGroupIds=mine,
                results=[result(1, errorGroupIds=mine[:4]), result(2, errorGroupIds=mine[4:], newField=number)],
                anotherNewField=True,
            )
            simulator.put_test_session(document, entry(number, errorGroupIds=mine))

    with Simulator(small_world, rate_limit=0) as simulator:
        crowded(simulator)
        wanted = _exported(make_etl_at(simulator.url, new_warehouse(engine_name)))
    url = new_warehouse(engine_name)
    with Simulator(small_world, rate_limit=0) as simulator, closing(Database(url)) as database:
        crowded(simulator)
        before = _deadlocks(database)
        simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=0.01)
        with workers(simulator.url, url, CHECKLY_ETL_EXPORT__BATCH_SIZE="8") as some:
            crowd = [some.start(*command, "-v") for command in [("sync",), BACKFILL, ("sync",), BACKFILL, ("sync",)]]
            for worker in crowd:
                assert worker.wait() == 0, worker.err[-2000:]
                assert "deadlock" not in worker.err
        assert {id_: times for id_, times in Counter(_fetched_ids(simulator)).items() if times > 1} == {}
        assert _deadlocks(database) == before
    _equals_peace(url, wanted)


# Eight threads meet in the first decoding that their process does; switching as often as it can shows what is
# rare otherwise.
_FIRST_DECODING = """
import sys, threading
from etl import documents, normalize

sys.setswitchinterval(1e-6)
session, summary, group = (documents.read(document.encode()) for document in sys.argv[1:4])
test_session_id, account_id, error_group_id = sys.argv[4:]
barrier = threading.Barrier(8)

def work():
    barrier.wait()
    rows = normalize.normalize_test_session(
        session, test_session_id=test_session_id, account_id=account_id, summary=summary, held=None
    )
    groups = normalize.normalize_error_group(group, error_group_id=error_group_id)
    results.append((len(rows.results), groups.environments))

results = []
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert results == [(2, ["production"])] * 8, results
"""


def test_the_first_test_sessions_decoded_by_eight_threads_at_once_do_not_crash_the_process() -> None:
    """A decoder that is built while another thread uses it already takes the interpreter down."""
    documents = [json.dumps(document) for document in (detail(1), entry(1), error_group(1))]
    command = [sys.executable, "-c", _FIRST_DECODING, *documents, uuid(1), ACCOUNT, str(error_group(1)["id"])]
    for _ in range(3 * TIMES):
        ended = subprocess.run(command, capture_output=True, cwd=_CHECKOUT, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")


# --- some die -----------------------------------------------------------------------------------------------------


def test_workers_that_are_killed_and_terminated_among_others_lose_and_double_nothing(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    wide_world: World,
    peace_of: Peace,
) -> None:
    url, chance = new_warehouse(engine_name), random.Random(11)
    slow_checkly.add_fault(match="/v1/", kind="delay", seconds=0.08)
    ids = _ids(wide_world)
    with workers(slow_checkly.url, url, CHECKLY_ETL_EXPORT__BATCH_SIZE="30") as some:
        survivors: list[Worker] = []
        for _ in range(ROUNDS):
            # The simulator remembers: --force keeps something to do for everybody.
            survivors.append(some.start(*BACKFILL))
            victims = [
                (_named(some, "sync"), signal.SIGKILL),
                (_named(some, *BACKFILL, "--force"), signal.SIGTERM),
            ]
            queueing = some.run("enqueue", *chance.sample(ids, 5))
            assert queueing.process.returncode == 0, queueing.err
            for victim, how in victims:
                # Not before it works: Python itself, while it starts, knows nothing of the exit code 143.
                wait_until(lambda v=victim: _works(slow_checkly, some, v))
                _pause(chance.uniform(0, 0.6), victim)
                victim.process.send_signal(how)
            for victim, how in victims:
                code = victim.wait()
                if victim.out:  # it was over when the signal came; Python, while it ends, knows nothing of 143 again
                    assert code in (0, -how, 143), victim.err[-2000:]
                else:
                    assert code == (-9 if how == signal.SIGKILL else 143), victim.err[-2000:]
                    assert how == signal.SIGKILL or "claims given back" in victim.err
        _tell_no_secret_in_the_process_list(some)
        for survivor in survivors:
            assert survivor.wait() == 0, survivor.err[-2000:]
        last = some.run("sync")
        assert last.process.returncode == 0, last.err[-2000:]

    _equals_peace(url, peace_of(wide_world, engine_name))
    with closing(Database(url)) as database:
        outcomes = Counter(row["outcome"] for row in rows(database, "SELECT outcome FROM etl_runs"))
        assert set(outcomes) <= {"ok", "interrupted"}, outcomes
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state <> 'queued'") == 0


# --- some sleep ---------------------------------------------------------------------------------------------------


def test_a_worker_that_slept_through_its_lease_drops_what_it_brought(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    wide_world: World,
    peace_of: Peace,
) -> None:
    """A laptop's lid, a virtual machine that is moved: the process goes on as if nothing had happened."""
    url = new_warehouse(engine_name)
    with (
        Simulator(wide_world, rate_limit=0) as simulator,
        closing(Database(url)) as database,
        workers(simulator.url, url, CHECKLY_ETL_EXPORT__LEASE="1s") as some,
    ):
        simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=1.5, times=8)
        sleeper = _named(some, "sync", "-v")
        # All its threads wait for Checkly, and nothing is written meanwhile: it holds no lock when it falls asleep.
        wait_until(lambda: len(_fetched_ids(simulator)) == 8)
        sleeper.process.send_signal(signal.SIGSTOP)
        held = scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'")
        assert held > 8
        wait_until(lambda: _overdue(database) == held)
        other = _named(some, "sync")
        assert other.wait() == 0, other.err
        _equals_peace(url, peace_of(wide_world, engine_name))
        between = _stamps(database)
        sleeper.process.send_signal(signal.SIGCONT)
        assert sleeper.wait() == 0, sleeper.err
        assert sleeper.err.count("went to another worker") >= 8, sleeper.err
        assert "0 saved" in sleeper.out
        assert _stamps(database) == between, "the late one wrote"
        saved = scalar(database, "SELECT sum(test_sessions_saved) FROM etl_runs")
        assert saved == len(peace_of(wide_world, engine_name)["test_sessions"]), "counted twice"
    _equals_peace(url, peace_of(wide_world, engine_name))


def test_a_discovery_that_slept_through_its_lease_leaves_the_rest_to_the_other(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    wide_world: World,
    peace_of: Peace,
) -> None:
    url = new_warehouse(engine_name)
    with (
        Simulator(wide_world, rate_limit=0) as simulator,
        closing(Database(url)) as database,
        workers(simulator.url, url, CHECKLY_ETL_EXPORT__LEASE="1s") as some,
    ):
        simulator.add_fault(match="nextId", kind="delay", seconds=1, times=1)
        sleeper = _named(some, "sync", "-v")
        wait_until(lambda: any("nextId" in request.query for request in simulator.requests))
        # The first page is saved meanwhile: SQLite would be locked by who sleeps in a transaction.
        wait_until(lambda: scalar(database, "SELECT count(*) FROM etl_queue") > 0)
        sleeper.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _discovery_is_overdue(database))
        other = _named(some, "sync")
        assert other.wait() == 0, other.err
        _equals_peace(url, peace_of(wide_world, engine_name))
        watermark = scalar(database, "SELECT discovered_until FROM etl_accounts")
        assert watermark is not None
        sleeper.process.send_signal(signal.SIGCONT)
        assert sleeper.wait() == 0, sleeper.err
        assert "went to another process" in sleeper.err
        assert scalar(database, "SELECT discovered_until FROM etl_accounts") == watermark
        assert {id_: times for id_, times in Counter(_fetched_ids(simulator)).items() if times > 1} == {}
    _equals_peace(url, peace_of(wide_world, engine_name))


def test_workers_that_fall_asleep_at_any_moment_do_not_stop_the_others_for_good(
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    wide_world: World,
    peace_of: Peace,
) -> None:
    """Asleep in the middle of a transaction, too: the others wait, but all end well when it wakes up."""
    url, chance = new_warehouse(engine_name), random.Random(5)
    with workers(slow_checkly.url, url, CHECKLY_ETL_EXPORT__LEASE="1s") as some:
        for _ in range(ROUNDS):
            sleeper = _named(some, *BACKFILL, "--force")
            wait_until(lambda v=sleeper: _works(slow_checkly, some, v))
            _pause(chance.uniform(0, 0.5), sleeper)
            sleeper.process.send_signal(signal.SIGSTOP)
            other = some.start("sync")
            _pause(1.2, other)  # longer than the lease
            sleeper.process.send_signal(signal.SIGCONT)
            assert sleeper.wait() == 0, sleeper.err
            assert other.wait() == 0, other.err
        last = some.run("sync")
        assert last.process.returncode == 0, last.err[-2000:]
    _equals_peace(url, peace_of(wide_world, engine_name))


# --- helpers ------------------------------------------------------------------------------------------------------


def _exported(etl: pipeline.Etl) -> Content:
    assert pipeline.sync(etl).word == "ok"
    found = everything(etl.database)
    etl.database.close()
    return found


def _equals_peace(url: str, wanted: Content) -> None:
    """Equal but for where a row of the queue came from: that depends on who was first."""
    with closing(Database(url)) as database:
        found = everything(database)
        for secret in SECRETS:
            assert rows_that_hold(database, secret) == []
    same_rows(_without_source(wanted), _without_source(found))


def _without_source(content: Content) -> Content:
    return {**content, "etl_queue": [(*row[:3], *row[5:]) for row in content["etl_queue"]]}


def _ids(world: World) -> list[str]:
    """The test sessions that there are at the world's fixed time."""
    return [id_ for created_ms, id_ in world.timetable() if created_ms <= NOW.timestamp() * 1000]


def _named(some: Workers, *arguments: str) -> Worker:
    """A worker with a key of its own, by which the simulator can tell its calls from those of others."""
    return some.start(*arguments, CHECKLY_API_KEY=_key(len(some.started)))


def _key(number: int) -> str:
    return f"{KEY}_of_worker_{number}_"


def _worker_of(request: Any) -> str:
    return str(request.headers.get("authorization", ""))


def _works(simulator: Simulator, some: Workers, worker: Worker) -> bool:
    """It has called Checkly, or has ended."""
    key = _key(next(number for number, started in enumerate(some.started) if started is worker))
    called = any(_worker_of(request).endswith(key) for request in simulator.requests)
    return called or worker.process.poll() is not None


def _pause(seconds: float, worker: Worker) -> None:
    """A random moment of its life; no longer than it lives."""
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(seconds)


def _fetched_ids(simulator: Simulator) -> list[str]:
    return [match[1] for request in simulator.requests if (match := _DETAIL.fullmatch(request.path))]


def _walkers(simulator: Simulator) -> dict[str, tuple[float, float]]:
    """When each worker asked for its first and for its last page of the list."""
    walks: dict[str, tuple[float, float]] = {}
    for request in simulator.requests:
        if request.path == "/v1/test-sessions":
            begun = walks.get(_worker_of(request), (request.at, request.at))[0]
            walks[_worker_of(request)] = (begun, request.at)
    return walks


def _overdue(database: Database) -> int:
    moment = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if database.is_sqlite else "clock_timestamp()"
    sql = f"SELECT count(*) FROM etl_queue WHERE state = 'leased' AND available_at < {moment}"
    return int(scalar(database, sql))


def _discovery_is_overdue(database: Database) -> bool:
    moment = "strftime('%Y-%m-%d %H:%M:%f', 'now')" if database.is_sqlite else "clock_timestamp()"
    return bool(scalar(database, f"SELECT count(*) FROM etl_accounts WHERE discovery_leased_until < {moment}"))


def _stamps(database: Database) -> list[dict[str, Any]]:
    return rows(database, "SELECT test_session_id, exported_at, etl_run_id FROM test_sessions ORDER BY 1")


def _deadlocks(database: Database) -> int:
    if database.is_sqlite:
        return 0
    return int(scalar(database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))


def _tell_no_secret_in_the_process_list(some: Workers) -> None:
    """What `ps` shows of the workers, and of whatever they may have started."""
    shown = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    assert any(str(worker.process.pid) in shown for worker in some.started), "look while they work"
    assert [pid for pid, line in shown.items() if any(secret.encode() in line for secret in SECRETS)] == []

"""The shared budget (guarantee 7): never over it, and nearly all of it used; a 429 silences every process.

A call's grant is not its arrival. The warehouse counts grants in any 61 s, Checkly arrivals in any 60 s; a grant is
used within 0.5 s after it was committed (`pacing.FRESH`). So half a second of jitter is tolerated in all else between
the database's clock and Checkly's: the commit, the thread's turn, the connection. The simulator here allows exactly
the configured budget: a call that took longer would cost a 429. Beside two busy processes half a second is enough.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from etl import session_queue
from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import NOW, rows, scalar
from tests.harness import IS_AT_LENGTH, TIMES, Content, everything, same_rows, wait_until, workers

LIST = r"/v1/test-sessions\?"
DETAIL = "/v1/test-sessions/.+"
WINDOW, FRESH = 61.0, 0.5  # of etl/accounts.py and etl/pipeline/pacing.py
PROCESSES = 3
ROOT = Path(__file__).parents[2]
only_long = pytest.mark.skipif(TIMES < 10, reason="a window lasts 61 s: CHECKLY_ETL_TORTURE=10 and more")


def arrivals(checkly: Simulator) -> list[float]:
    """Of the calls that count against the limit, in order."""
    return [request.at for request in checkly.requests if request.path.startswith("/v1/")]


def refusals(checkly: Simulator) -> int:
    """How often Checkly said 429."""
    return sum(request.status == 429 for request in checkly.requests)


def most_within(moments: list[float], seconds: float) -> int:
    """The most arrivals in any so many seconds."""
    most = begin = 0
    for end, moment in enumerate(moments):
        while moments[begin] <= moment - seconds:
            begin += 1
        most = max(most, end - begin + 1)
    return most


def queue_all(url: str, world: World) -> None:
    """Every session is due, so that each process has something to do from its first moment."""
    ids = [id_ for created, id_ in world.timetable() if created <= world.at()]
    with closing(Database(url)) as database, database.writing() as connection:
        session_queue.enqueue(connection, ids)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that want a core each."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def large_world() -> World:
    """Some hundred sessions: more than one window's budget."""
    return World(seed=5, now=NOW, days=40)


# --- never over, nearly all of it ---------------------------------------------------------------------------------


@only_long
@pytest.mark.parametrize(
    "load", [0, 2] if IS_AT_LENGTH else [2], ids=["quiet", "under load"] if IS_AT_LENGTH else ["under load"]
)
def test_three_processes_of_eight_threads_never_get_a_429_and_use_the_budget(
    load: int, engine_name: str, warehouse_url: str, large_world: World
) -> None:
    """Two refills (one where only CI looks): the budget is spent at once, 61 s later again, and so on.

    Used: the calls made over those that the budget allowed, where each window begins 61 s after the one before it.
    """
    refills = 2 if TIMES >= 50 else 1
    budget = 120 if TIMES >= 50 else 90
    queue_all(warehouse_url, large_world)
    with Simulator(large_world, rate_limit=budget, rate_window=60.0) as checkly, busy(load):
        env = {"CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": str(budget), "CHECKLY_ETL_EXPORT__DISCOVER": "false"}
        with workers(checkly.url, warehouse_url, **env, CHECKLY_ETL_EXPORT__BATCH_SIZE="20") as some:
            running = [some.start("sync") for _ in range(PROCESSES)]
            could_be = budget * (refills + 1)
            wait_until(lambda: len(arrivals(checkly)) >= 0.95 * could_be, timeout=70 * (refills + 1), every=0.2)
            time.sleep(3.0)  # the rest, and anything that would be too much
            for worker in running:
                worker.process.terminate()
            assert [worker.wait() for worker in running] == [143] * PROCESSES, running[0].err
        moments = arrivals(checkly)
        assert refusals(checkly) == 0, "never a 429"
        assert most_within(moments, 60.0) <= budget
        used = len(moments) / could_be
        begun = [at for before, at in pairwise(moments) if at - before > 30]
        gaps = [later - earlier for earlier, later in pairwise([moments[0], *begun])]
        print(
            f"{engine_name}, load {load}: {used:.1%} of {could_be} calls, refilled after "
            f"{', '.join(f'{gap:.1f} s' for gap in gaps)}, most in 60 s: {most_within(moments, 60.0)} of {budget}"
        )
        assert used >= 0.95
        assert len(gaps) == refills
        assert all(gap < WINDOW / 0.95 for gap in gaps), gaps


def test_the_first_burst_of_three_processes_is_the_budget_and_not_one_call_more(
    engine_name: str, warehouse_url: str, small_world: World
) -> None:
    """What of it fits into `make test`: all of it at once, shared by all, and then silence until SIGTERM."""
    budget = 17
    queue_all(warehouse_url, small_world)
    with Simulator(small_world, rate_limit=budget, rate_window=60.0) as checkly:
        # Two must not hold all that is left: a third one that comes late would have nothing to wait for.
        env = {
            "CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": str(budget),
            "CHECKLY_ETL_EXPORT__DISCOVER": "false",
            "CHECKLY_ETL_EXPORT__BATCH_SIZE": "2",
            "CHECKLY_ETL_EXPORT__CONCURRENCY": "2",
        }
        with workers(checkly.url, warehouse_url, **env) as some:
            running = [some.start("sync") for _ in range(PROCESSES)]
            wait_until(lambda: _granted(warehouse_url) == budget, every=0.1)
            time.sleep(2.0)  # what would be too much would come now
            for worker in running:
                worker.process.terminate()
            assert [worker.wait() for worker in running] == [143] * PROCESSES, running[0].err
        assert refusals(checkly) == 0
        # A grant that was not used in time is forfeited: on a machine that has no time, some are.
        assert budget / 2 < len(arrivals(checkly)) <= _granted(warehouse_url) == budget
        with closing(Database(warehouse_url)) as database:
            assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0


def _granted(url: str) -> int:
    with closing(Database(url)) as database:
        return int(scalar(database, "SELECT coalesce(sum(calls), 0) FROM etl_rate_grants"))


def test_retries_are_paid_from_the_budget(engine_name: str, warehouse_url: str, small_world: World) -> None:
    """Each 503 is a call that Checkly counted: tries, not sessions, are granted."""
    budget = 20
    with Simulator(small_world, rate_limit=budget, rate_window=60.0) as checkly:
        checkly.add_fault(match=DETAIL, kind="status", status=503, headers={"Retry-After": "0.1"}, probability=0.5)
        with workers(checkly.url, warehouse_url, CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE=str(budget)) as some:
            worker = some.start("sync", "--max-time", "6s", "-v")
            worker.wait()
        assert sum(request.status == 503 for request in checkly.requests) > 3
        assert refusals(checkly) == 0
        assert len(arrivals(checkly)) <= budget
        with closing(Database(warehouse_url)) as database:
            assert scalar(database, "SELECT sum(api_requests) FROM etl_runs") == len(arrivals(checkly))
            assert scalar(database, "SELECT sum(api_retries) FROM etl_runs") >= 3
            assert scalar(database, "SELECT sum(throttled_ms) FROM etl_runs") > 1000, "waiting is counted"


def test_a_new_process_finds_the_budget_as_the_dead_ones_left_it(
    engine_name: str, warehouse_url: str, small_world: World
) -> None:
    """kill -9 again and again gives nobody a fresh minute."""
    budget = 12
    with Simulator(small_world, rate_limit=0) as checkly:
        with workers(checkly.url, warehouse_url, CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE=str(budget)) as some:
            for _ in range(3):
                worker = some.start("sync")
                wait_until(lambda w=worker: _waits(w.streams[1].fileno()) or len(arrivals(checkly)) >= budget)
                time.sleep(0.3)
                worker.kill()
        assert len(arrivals(checkly)) <= budget


def _waits(stderr: int) -> bool:
    return b"waiting" in os.pread(stderr, 100_000, 0)


# --- a 429 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["0", "5000"], ids=["no budget", "a budget"])
def test_a_429_pauses_every_process_for_as_long_as_it_says(
    budget: str, engine_name: str, warehouse_url: str, large_world: World
) -> None:
    """Retry-After: 2. What had its grant already may still arrive, for FRESH; then nothing until the 2 s are over."""
    queue_all(warehouse_url, large_world)
    with Simulator(large_world, rate_limit=0) as checkly:
        checkly.add_fault(match="/v1/", kind="delay", seconds=0.05)
        env = {"CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": budget, "CHECKLY_ETL_EXPORT__DISCOVER": "false"}
        with workers(checkly.url, warehouse_url, **env) as some:
            running = [some.start("sync", CHECKLY_ETL_EXPORT__BATCH_SIZE="20") for _ in range(PROCESSES)]
            wait_until(lambda: len(_users(warehouse_url)) == PROCESSES, every=0.05)
            checkly.clear_faults()
            checkly.add_fault(match=DETAIL, kind="status", status=429, headers={"Retry-After": "2"}, times=1)
            checkly.add_fault(match="/v1/", kind="delay", seconds=0.05)
            wait_until(lambda: refusals(checkly) > 0)
            refused = next(request.at for request in checkly.requests if request.status == 429)
            wait_until(lambda: arrivals(checkly)[-1] > refused + 2.0)
            for worker in running:
                worker.process.terminate()
            assert {worker.wait() for worker in running} <= {0, 143}, running[0].err
        during = [moment - refused for moment in arrivals(checkly) if 0 < moment - refused < 2.0]
        assert not [moment for moment in during if moment > FRESH + 0.25], during
        assert refusals(checkly) == 1
        with closing(Database(warehouse_url)) as database:
            assert scalar(database, "SELECT coalesce(max(attempts), 0) FROM etl_queue") == 0, "nobody is blamed"


def _users(url: str) -> set[str]:
    """Processes that hold claims."""
    with closing(Database(url)) as database:
        found = rows(database, "SELECT DISTINCT claimed_by FROM etl_queue WHERE state = 'leased'")
    return {str(row["claimed_by"]) for row in found}


def test_429s_without_retry_after_pause_5_s_then_10_s_then_an_answer_makes_it_5_again(
    engine_name: str, warehouse_url: str, small_world: World
) -> None:
    """One pause for all calls that were under way. (The third, of 20 s, only in the long form.)"""
    refused = 3 if TIMES >= 10 else 2
    expected = [5.0, 10.0, 20.0][:refused]
    with Simulator(small_world, rate_limit=0) as checkly:
        checkly.add_fault(match=LIST, kind="status", status=429, times=refused)
        with workers(checkly.url, warehouse_url) as some:
            worker = some.run("sync", timeout=90)
            assert worker.process.returncode == 0, worker.err
            moments = arrivals(checkly)
            gaps = [later - earlier for earlier, later in pairwise(moments)][:refused]
            assert gaps == pytest.approx(expected, abs=1.0)
            for seconds in expected:
                assert f"waiting {seconds:.0f} s: the API asked for a pause" in worker.err, "waiting shows in the log"
        with closing(Database(warehouse_url)) as database:
            assert rows(database, "SELECT pauses FROM etl_accounts") == [{"pauses": 0}]
            throttled = scalar(database, "SELECT throttled_ms FROM etl_runs")
            assert throttled == pytest.approx(sum(expected) * 1000, abs=1500)


def test_a_pause_beyond_five_minutes_ends_every_process_with_exit_3_and_stays_stored(
    engine_name: str, warehouse_url: str, large_world: World
) -> None:
    """All three have work in hand; one of them is told, the others find it in the warehouse."""
    queue_all(warehouse_url, large_world)
    with Simulator(large_world, rate_limit=0) as checkly:
        checkly.add_fault(match="/v1/", kind="delay", seconds=0.05)
        env = {"CHECKLY_ETL_EXPORT__BATCH_SIZE": "10", "CHECKLY_ETL_EXPORT__DISCOVER": "false"}
        with workers(checkly.url, warehouse_url, **env) as some:
            running = [some.start("sync") for _ in range(PROCESSES)]
            wait_until(lambda: len(_users(warehouse_url)) == PROCESSES, every=0.05)
            checkly.clear_faults()
            hour = {"Retry-After": "3600"}
            checkly.add_fault(match="/v1/", kind="status", status=429, headers=hour, times=1)
            checkly.add_fault(match="/v1/", kind="delay", seconds=0.05)
            assert [worker.wait(30) for worker in running] == [3] * PROCESSES, running[0].err
            assert all("nothing is lost" in worker.err for worker in running)
            assert refusals(checkly) == 1, "the others believe it"
            calls = len(arrivals(checkly))
            later = some.run("sync", timeout=20)
            assert later.process.returncode == 3, "the pause is stored"
            assert len(arrivals(checkly)) == calls, "and no call is made to find out"
        with closing(Database(warehouse_url)) as database:
            assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
            assert scalar(database, "SELECT coalesce(max(attempts), 0) FROM etl_queue") == 0
            (account,) = rows(database, "SELECT paused_until FROM etl_accounts")
            assert _left(database, account["paused_until"]) == pytest.approx(3600, abs=60)


def _left(database: Database, moment: datetime | str) -> float:
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


def test_the_pause_of_one_429_holds_for_a_backfill_and_an_error_group_as_well(
    engine_name: str, warehouse_url: str, small_world: World, peace: Callable[[str], Content]
) -> None:
    """Whoever meets it: the list, a session, a group. Everything arrives all the same."""
    with Simulator(small_world, rate_limit=0) as checkly:
        for match in (LIST, DETAIL, "/v1/test-session-error-groups"):
            checkly.add_fault(match=match, kind="status", status=429, headers={"Retry-After": "1"}, times=1)
        with workers(checkly.url, warehouse_url) as some:
            assert some.run("sync").process.returncode == 0, some.started[-1].err
        refused = [request.at for request in checkly.requests if request.status == 429]
        assert len(refused) == 3
        for moment in refused:
            quiet = [at - moment for at in arrivals(checkly) if FRESH + 0.25 < at - moment < 1.0]
            assert quiet == []
        with closing(Database(warehouse_url)) as database:
            same_rows(peace(engine_name), everything(database))


# --- eight threads at once ----------------------------------------------------------------------------------------

_FIRST_DOCUMENTS = """
import json, sys, threading
from datetime import UTC, datetime
sys.setswitchinterval(1e-6)  # what a busy machine does now and then, all the time
from etl import documents, normalize
from etl.simulator import World
world = World(seed=1, now=datetime(2026, 11, 15, 12, tzinfo=UTC), days=1)
ids = [id_ for _, id_ in world.timetable()[:8]]
bodies = {id_: documents.known(json.dumps(world.detail(id_)).encode()) for id_ in ids}
together = threading.Barrier(8)
failed = []
def work(id_):
    together.wait()
    try:
        normalize.normalize_test_session(bodies[id_], test_session_id=id_, account_id="a", summary=None, held=None)
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=work, args=(id_,)) for id_ in ids]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(f"{failed[0]!r}" if failed else 0)
"""


def test_the_first_documents_of_a_run_may_arrive_in_all_threads_at_once() -> None:
    """A decoder that is built when it is first needed is built in eight threads then: msgspec crashes (SIGSEGV)."""
    for _ in range(max(8, 2 * TIMES)):
        process = subprocess.run(
            [sys.executable, "-c", _FIRST_DOCUMENTS], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert process.returncode == 0, (process.returncode, process.stderr[-2000:])

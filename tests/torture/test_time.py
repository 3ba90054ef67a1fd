"""Time: sessions that go on, a simulated week of passes, and clocks that are wrong, jump, or are shown elsewhere."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from etl import accounts, config, pipeline, session_queue, warehouse
from etl.database import Database, now
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from tests.conftest import ACCOUNT, NOW, environment, rows, scalar
from tests.documents import detail, entry, running, uuid
from tests.harness import TIMES, Content, Workers, everything, same_rows, wait_until, workers

STEP = timedelta(minutes=5)
PASSES = 2016 if TIMES >= 50 else 100 if TIMES < 10 else 200  # a week of passes every 5 minutes in `make torture`
BEGIN = NOW - timedelta(minutes=5 * PASSES)
KEPT_RUNS = 1000  # of etl_runs
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
DAYS = (3, -3)
AHEAD = timedelta(hours=20)

needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="Debian's package faketime is not installed")


class Clock:
    """Simulated time, of the world and of the warehouse."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment

    def set(self, database: Database) -> None:
        """The warehouse's clock shows the same from now on."""
        offset = self.moment - datetime.now(UTC)
        for engine in (database.engine, database._writer):
            engine.update_execution_options(clock_offset=offset)


# --- a week -------------------------------------------------------------------------------------------------------


def test_a_week_of_passes_exports_everything_and_nothing_grows(
    engine_name: str, new_warehouse: Callable[[str], str]
) -> None:
    """2,016 passes (100 in `make test`): sessions come, run, end and are grouped later; some are known by id only.

    At the end the warehouse is the one that a single export of the same moment makes, every session is final, and
    memory, connections, threads, files and our own tables are as they were after a fifth of the time.
    """
    clock = Clock(NOW)
    world = World(seed=3, days=16, clock=clock)  # its history reaches NOW: the passes watch the last week of it
    clock.moment = BEGIN
    by_id = [(NOW - PASSES * STEP * share, number) for share, number in ((0.9, 1), (0.6, 2), (0.3, 3))]
    with Simulator(world, rate_limit=0) as checkly:
        url = new_warehouse(engine_name)
        env = {**environment(checkly.url, url), "CHECKLY_ETL_CHECKLY__RETENTION": "7d"}
        env["CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE"] = "500"
        etl = Etl(config.load(Path(os.devnull), env), Database(url))
        saved, early = 0, None
        for number in range(PASSES + 1):
            clock.moment = BEGIN + number * STEP
            clock.set(etl.database)
            _enqueue_by_id(etl.database, checkly, clock.moment, by_id)
            outcome = pipeline.sync(etl)
            assert outcome.word == "ok", (number, outcome.error)
            saved += outcome.counters["test_sessions_saved"]
            if number == PASSES // 5:
                early = _held(etl.database)
        late = _held(etl.database)
        clock.moment = NOW + timedelta(hours=1)  # what ran at the end has ended, and was grouped
        clock.set(etl.database)
        assert pipeline.sync(etl).word == "ok"
        late["etl_queue"] = _held(etl.database)["etl_queue"]  # without what still ran, at either moment

        once = Etl(etl.settings, Database(new_warehouse(engine_name)))
        clock.set(once.database)
        once.settings = config.load(Path(os.devnull), {**env, "CHECKLY_ETL_EXPORT__DISCOVER": "false"})
        assert pipeline.backfill(once, since=BEGIN - timedelta(days=7), until=None).word == "ok"
        with once.database.writing() as connection:
            session_queue.enqueue(connection, [uuid(n) for _, n in by_id])
        pipeline.sync(once)

        assert early is not None
        growth = {what: (early[what], late[what]) for what in late}
        print(f"{PASSES} passes, {saved} saved, {len(checkly.requests)} calls; after a fifth, at the end: {growth}")
        _compare(etl.database, once.database)
        for what in ("threads", "files", "connections", "checked out", "etl_queue", "etl_accounts"):
            assert late[what] <= early[what] + 3, growth
        assert late["etl_rate_grants"] <= 500, growth
        assert late["etl_runs"] <= KEPT_RUNS, growth
        assert late["etl_drift"] <= early["etl_drift"] + 3, growth
        assert late["memory"] < early["memory"] + 12_000_000, growth
        for database in (etl.database, once.database):
            database.close()


def _enqueue_by_id(
    database: Database, checkly: Simulator, moment: datetime, by_id: list[tuple[datetime, int]]
) -> None:
    """Three sessions that no list tells of: running for half an hour, then final, and regrouped 10 minutes later."""
    for began, number in by_id:
        since = moment - began
        if timedelta(0) <= since < STEP:
            checkly.put_test_session(running(number, startedAt=_iso(began)))
            with database.writing() as connection:
                session_queue.enqueue(connection, [uuid(number)])
        elif timedelta(minutes=30) <= since < timedelta(minutes=30) + STEP:
            checkly.put_test_session(_ended(number, began))
        elif timedelta(minutes=40) <= since < timedelta(minutes=40) + STEP:
            checkly.put_test_session(_ended(number, began) | {"name": "regrouped"})


def _ended(number: int, began: datetime) -> dict[str, Any]:
    return detail(number, startedAt=_iso(began), stoppedAt=_iso(began + timedelta(minutes=30)))


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _held(database: Database) -> dict[str, int]:
    """What this process and the operation tables hold."""
    gc.collect()
    found = {
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"),
        "threads": sum(not thread.name.startswith("Thread-") for thread in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),
        "checked out": database.engine.pool.checkedout(),  # type: ignore[attr-defined]
        "connections": 0,
    }
    for table in ("etl_queue", "etl_rate_grants", "etl_runs", "etl_drift", "etl_accounts"):
        found[table] = int(scalar(database, f"SELECT count(*) FROM {table}"))
    if not database.is_sqlite:
        ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        found["connections"] = int(scalar(database, ours))
    return found


def _compare(found: Database, wanted: Database) -> None:
    """Sessions and what belongs to them. Error groups are read again once a day only, drift is counted a fetch."""
    tables = ["test_sessions", "test_session_results", "check_executions"]
    tables += ["test_session_error_groups", "test_session_result_error_groups"]
    whole = everything(wanted)
    same_rows({table: whole[table] for table in tables}, everything(found))
    running_ones = "SELECT test_session_id FROM test_sessions WHERE stopped_at IS NULL"
    assert rows(found, running_ones) == [], "everything is final"
    groups = "SELECT error_group_id FROM error_groups ORDER BY 1"
    assert rows(found, groups) == rows(wanted, groups)
    assert rows(found, "SELECT state FROM etl_queue WHERE available_at < enqueued_at") == []


# --- one session's life, by the minute ----------------------------------------------------------------------------


@pytest.fixture
def at(warehouse_url: str, empty_checkly: Simulator) -> Iterator[Callable[..., Etl]]:
    """The pipeline's context at a moment: so long after the real one."""
    opened: list[Database] = []

    def make(offset: timedelta = timedelta(0), **env: str) -> Etl:
        settings = config.load(Path(os.devnull), {**environment(empty_checkly.url, warehouse_url), **env})
        opened.append(Database(warehouse_url, clock_offset=offset))
        return Etl(settings, opened[-1])

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def empty_checkly() -> Iterator[Simulator]:
    """A Checkly that holds only what a test puts there."""
    world = World(seed=1, now=NOW, days=1)
    with Simulator(world, rate_limit=0) as simulator:
        for _, id_ in world.timetable():
            simulator.remove_test_session(id_)
        yield simulator


def _reads(checkly: Simulator, number: int) -> int:
    return sum(request.path.endswith(uuid(number)) for request in checkly.requests)


def test_a_running_session_is_read_ever_more_rarely_and_left_after_running_max_age(
    at: Callable[..., Etl], empty_checkly: Simulator
) -> None:
    """A pass every 15 minutes (2 in the long form) for 29 hours: the gaps between its reads only grow."""
    etl = at()
    clock, begin = Clock(NOW), datetime.now(UTC)
    times = {"created_at": _iso(begin), "startedAt": _iso(begin)}
    empty_checkly.put_test_session(
        running(1, startedAt=_iso(begin)), entry(1, status="RUNNING", stoppedAt=None, **times)
    )
    read_at: list[int] = []
    minutes = range(0, 29 * 60, 2 if TIMES >= 50 else 15)
    for minute in minutes:
        clock.moment = begin + timedelta(minutes=minute)
        clock.set(etl.database)
        before = _reads(empty_checkly, 1)
        assert pipeline.sync(etl).exit_code == 0
        read_at += [minute] * (_reads(empty_checkly, 1) - before)
    gaps = [later - earlier for earlier, later in pairwise(read_at)]
    step = minutes.step
    assert all(later >= earlier - step for earlier, later in pairwise(gaps)), gaps
    assert len(read_at) < 45, "ever more rarely"
    assert max(gaps) <= 0.2 * 24 * 60 + step, "but never more than a fifth of its age apart"
    assert read_at[-1] >= 24 * 60, "until running_max_age"
    assert rows(etl.database, "SELECT * FROM etl_queue") == []
    empty_checkly.put_test_session(detail(1, startedAt=_iso(begin)), entry(1, **times))
    assert pipeline.sync(etl).counters["test_sessions_saved"] == 1, "its list entry changed: it is read again"


def test_a_session_known_by_id_only_is_read_at_its_settle_delays_and_no_more(
    at: Callable[..., Etl], empty_checkly: Simulator
) -> None:
    etl = at(CHECKLY_ETL_EXPORT__DISCOVER="false")
    clock, begin = Clock(NOW), datetime.now(UTC)
    ended = _ended(1, begin - timedelta(minutes=31))
    empty_checkly.put_test_session(ended)
    clock.moment = begin
    clock.set(etl.database)
    with etl.database.writing() as connection:
        session_queue.enqueue(connection, [uuid(1)])
    read_at: list[int] = []
    for minute in range(0, 27 * 60, 15):
        clock.moment = begin + timedelta(minutes=minute)
        clock.set(etl.database)
        before = _reads(empty_checkly, 1)
        pipeline.sync(etl)
        read_at += [minute] * (_reads(empty_checkly, 1) - before)
    assert read_at == [0, 15, 24 * 60], "at once, and 15 min and 24 h after its end, a minute before"
    assert rows(etl.database, "SELECT * FROM etl_queue") == []


# --- the clock of the process is wrong ----------------------------------------------------------------------------


@pytest.fixture
def faked(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The variables of faketime(1) for a worker. A clock that is set does not move the monotonic one.

    The library's clock_nanosleep(2), which `time.sleep` calls, then always fails with EINVAL; select(2) does not.
    """
    (tmp_path / "sitecustomize.py").write_text(
        "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
    )

    def variables(**env: str) -> dict[str, Any]:
        same = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": str(tmp_path)}
        return {**same, **env}

    return variables


@needs_faketime
@pytest.mark.parametrize("days", DAYS)
def test_on_postgresql_the_clock_of_the_process_does_not_matter(
    days: int,
    new_warehouse: Callable[[str], str],
    small_world: World,
    peace: Callable[[str], Content],
    faked: Callable[..., dict[str, Any]],
) -> None:
    """Two workers, one of them days ahead or behind, share the leases and the budget; the rows are the same."""
    url = new_warehouse("postgresql")
    with Simulator(small_world, rate_limit=0) as checkly:
        checkly.add_fault(match="/v1/", kind="delay", seconds=0.03)
        budget = {"CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "400", "CHECKLY_ETL_EXPORT__BATCH_SIZE": "5"}
        with workers(checkly.url, url, **budget) as some, closing(Database(url)) as database:
            pair = [some.start("sync"), some.start("sync", **faked(FAKETIME=f"{days:+d}d"))]
            grants: set[tuple[Any, ...]] = set()
            while any(worker.process.poll() is None for worker in pair):
                found = rows(database, "SELECT granted_at, calls FROM etl_rate_grants")
                grants |= {(row["granted_at"], row["calls"]) for row in found}
                time.sleep(0.05)
            assert [worker.wait() for worker in pair] == [0, 0], pair[1].err
            assert some.run("sync", **faked(FAKETIME=f"{days:+d}d")).process.returncode == 0
            for granted_at, _ in grants:
                assert abs(granted_at - datetime.now(UTC)) < timedelta(minutes=5), "the database's clock"
            details = [request.path for request in checkly.requests if request.path.startswith("/v1/test-sessions/")]
            assert len(details) == len(set(details)), "nothing was claimed twice"
            same_rows(peace("postgresql"), everything(database))


@needs_faketime
def test_on_postgresql_a_clock_that_jumps_while_the_process_runs_does_not_matter(
    new_warehouse: Callable[[str], str],
    small_world: World,
    peace: Callable[[str], Content],
    faked: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """What SQLite cannot say: its clock jumps as well, and a lease may seem over."""
    url = new_warehouse("postgresql")
    fetched = _jump("postgresql", url, small_world, peace, faked, tmp_path)
    assert len(fetched) == len(set(fetched)), "nothing was claimed twice"


@needs_faketime
def test_on_sqlite_a_clock_that_jumps_while_the_process_runs_loses_nothing(
    new_warehouse: Callable[[str], str],
    small_world: World,
    peace: Callable[[str], Content],
    faked: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    _jump("sqlite", new_warehouse("sqlite"), small_world, peace, faked, tmp_path)


def _jump(
    engine: str,
    url: str,
    world: World,
    peace: Callable[[str], Content],
    faked: Callable[..., dict[str, Any]],
    folder: Path,
) -> list[str]:
    """A day forward, then two days back, and home again, all in one run, within a budget that is enough."""
    moment = folder / "moment"
    moment.write_text("+0d")
    with Simulator(world, rate_limit=0) as checkly:
        checkly.add_fault(match="/v1/", kind="delay", seconds=0.05)
        jumping = faked(FAKETIME_TIMESTAMP_FILE=str(moment), FAKETIME_NO_CACHE="1")
        with workers(checkly.url, url, CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE="400") as some:
            worker = some.start("sync", CHECKLY_ETL_EXPORT__CONCURRENCY="2", **jumping)
            for calls, jump in ((5, "+1d"), (15, "-2d"), (25, "+0d")):
                wait_until(lambda calls=calls: len(checkly.requests) >= calls)
                moment.write_text(jump)
            assert worker.wait() == 0, worker.err
            fetched = [r.path for r in checkly.requests if r.path.startswith("/v1/test-sessions/")]
            assert some.run("sync").process.returncode == 0, some.started[-1].err
            with closing(Database(url)) as database:
                same_rows(peace(engine), everything(database))
    return fetched


# --- on SQLite the machine's clock is the database's: it was ahead, and was set back ------------------------------


def _writes(what: str, connection: Connection) -> None:
    """What a process whose clock is ahead leaves behind."""
    if "alone" not in what:  # `enqueue` and `backfill --plan` leave no row of a run
        warehouse.start_run(connection, "sync")
    match what.removesuffix(" alone"):
        case "a pause of 10 s":
            accounts.pause(connection, ACCOUNT, 10.0)
        case "a pause of its own":
            accounts.pause(connection, ACCOUNT, None)
        case "a lease on discovery":
            accounts.lease_discovery(connection, ACCOUNT, timedelta(minutes=5))
        case "discovered until then":
            held = accounts.lease_discovery(connection, ACCOUNT, timedelta(minutes=5))
            assert held is not None
            accounts.finish_discovery(connection, held, discovered_until=now(connection))
        case "ids queued":
            session_queue.enqueue(connection, [uuid(1), uuid(2)])
        case "claims":
            session_queue.enqueue(connection, [uuid(1), uuid(2)])
            session_queue.claim(connection, account_id=ACCOUNT, limit=9, lease=timedelta(minutes=5), is_default=True)


@pytest.mark.parametrize(
    "what",
    [
        "a pause of 10 s",
        "a pause of its own",
        "a lease on discovery",
        "discovered until then",
        "ids queued",
        "ids queued alone",
        "claims",
    ],
)
def test_a_clock_that_was_ahead_and_is_right_again_does_not_block_the_export(
    what: str, engine_name: str, warehouse_url: str, empty_checkly: Simulator
) -> None:
    """The next pass exports, whoever wrote what with a time that is still to come. (The holder of a lease is alive:
    nothing tells that it has died.)"""
    for number in (1, 2):  # listed only where discovery is what may be blocked
        created_at = _iso(datetime.now(UTC) - timedelta(hours=1))
        is_listed = not what.startswith(("ids queued", "claims"))
        empty_checkly.put_test_session(detail(number), entry(number, created_at=created_at) if is_listed else None)
    budget = {"CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "400"}
    with closing(Database(warehouse_url, clock_offset=AHEAD)) as ahead, ahead.writing() as connection:
        accounts.register(connection, ACCOUNT, name=None, retention=timedelta(days=3600))
        _writes(what, connection)
    with workers(empty_checkly.url, warehouse_url, **budget) as some, closing(Database(warehouse_url)) as database:
        began = time.monotonic()
        worker = some.run("sync", "--max-time", "15s", timeout=40)
        assert worker.process.returncode == 0, worker.err
        held = scalar(database, "SELECT count(*) FROM test_sessions")
        assert held == 2, f"after {time.monotonic() - began:.0f} s {held} of 2 sessions are exported\n{worker.err}"


@needs_faketime
def test_a_worker_killed_on_a_sqlite_file_whose_clock_was_a_day_ahead_leaves_nothing_in_the_way(
    new_warehouse: Callable[[str], str],
    small_world: World,
    peace: Callable[[str], Content],
    faked: Callable[..., dict[str, Any]],
) -> None:
    """kill -9 in the middle of a pass tomorrow; today's pass equals one that was never interrupted."""
    url = new_warehouse("sqlite")
    with Simulator(small_world, rate_limit=0) as checkly:
        checkly.add_fault(match="/v1/", kind="delay", seconds=0.1)
        with workers(checkly.url, url, CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE="400") as some:
            worker = some.start("sync", **faked(FAKETIME="+1d"))
            wait_until(lambda: len(checkly.requests) >= 15)
            worker.kill()
            checkly.clear_faults()
            after = some.run("sync", "--max-time", "20s")
            assert after.process.returncode == 0, after.err
            with closing(Database(url)) as database:
                same_rows(peace("sqlite"), everything(database))


@pytest.mark.parametrize("by", ["a run", "a plan"])
def test_calls_granted_before_the_clock_was_set_back_are_paid_for_once_and_not_for_hours(
    by: str, engine_name: str, warehouse_url: str, small_world: World
) -> None:
    """Their time is still to come: they may have been made a moment ago, so a window of 61 s is waited."""
    with closing(Database(warehouse_url, clock_offset=AHEAD)) as ahead, ahead.writing() as connection:
        accounts.register(connection, ACCOUNT, name=None, retention=timedelta(days=3600))
        if by == "a run":  # `backfill --plan` leaves no row
            warehouse.start_run(connection, "sync")
        accounts.take(connection, ACCOUNT, wanted=400, per_minute=400)
    budget = {"CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "400"}
    with Simulator(small_world, rate_limit=0) as checkly, workers(checkly.url, warehouse_url, **budget) as some:
        worker = some.run("sync", "--max-time", "3s", timeout=40)
        assert worker.process.returncode == 0, worker.err
        assert checkly.requests == [], "no fresh budget"
        waits = [int(seconds) for seconds in re.findall(r"waiting (\d+) s", worker.err)]
        assert waits, worker.err
        assert max(waits) <= 61, worker.err


# --- time zones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["America/St_Johns", "Australia/Lord_Howe"])
def test_time_zones_of_the_database_and_of_the_process_do_not_matter(
    zone: str, new_warehouse: Callable[[str], str], small_world: World, peace: Callable[[str], Content]
) -> None:
    """Half hours, a summer time of half an hour: the rows are those of UTC, by every command."""
    url = new_warehouse("postgresql")
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'".encode())
    try:
        with Simulator(small_world, rate_limit=0) as checkly, workers(checkly.url, url, TZ="Asia/Kathmandu") as some:
            assert some.run("sync").process.returncode == 0, some.started[-1].err
            same_again(some, url, peace)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" RESET timezone'.encode())


def same_again(some: Workers, url: str, peace: Callable[[str], Content]) -> None:
    """After the export and after a replay, in a session of the database's own zone and in one of UTC."""
    for command in (("status",), ("replay",), ("sync",)):
        assert some.run(*command).process.returncode == 0, some.started[-1].err
        with closing(Database(url)) as database:
            same_rows(peace("postgresql"), everything(database))


def test_the_hours_that_a_summer_time_skips_or_repeats_are_stored_as_they_are(
    engine_name: str, warehouse_url: str, empty_checkly: Simulator
) -> None:
    """2026-11-01 01:30 happens twice in New York, 2026-03-08 02:30 never: in UTC both are like any other."""
    moments = ["2026-11-01T05:30:00.000Z", "2026-11-01T06:30:00.000Z", "2026-03-08T07:30:00.000Z"]
    for number, moment in enumerate(moments, 1):
        empty_checkly.put_test_session(
            detail(number, startedAt=moment, stoppedAt=moment), entry(number, startedAt=moment, created_at=moment)
        )
    with workers(empty_checkly.url, warehouse_url, TZ="America/New_York", PGTZ="America/New_York") as some:
        assert some.run("backfill", "--since", "2026-03-08T07:30:00Z").process.returncode == 0, some.started[-1].err
    with closing(Database(warehouse_url)) as database:
        stored = rows(database, "SELECT started_at, created_at FROM test_sessions ORDER BY test_session_id")
    assert len(stored) == 3
    for row, moment in zip(stored, moments, strict=True):
        for value in row.values():
            shown = value if isinstance(value, str) else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
            assert shown == f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S.%f}"

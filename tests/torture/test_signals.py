"""SIGTERM and SIGINT in every command, at any moment: the work in hand is finished or given back, the end comes in
time, without a traceback. The exit code is 143 or 130."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import KEY, rows, scalar
from tests.harness import TIMES, Content, Worker, Workers, everything, same_rows, wait_until, workers
from tests.proxy import Proxy

GRACE = 1.0
HARD_STOP = 3.0  # what the contract of `schedule.grace` leaves for giving back
SLACK = 4.0  # for two busy cores; what hangs would take 60 s
DETAIL, LIST, GROUPS = r"/v1/test-sessions/.+", r"/v1/test-sessions\?", "/v1/test-session-error-groups"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LONG_AGO = ("--since", "3000d")
COMMANDS = {
    "sync": ("sync",),
    "backfill": ("backfill", *LONG_AGO),
    "plan": ("backfill", *LONG_AGO, "--plan"),
    "enqueue": ("enqueue", "-"),
    "replay": ("replay",),
    "status": ("status",),
    "dead": ("dead", "retry", "--all"),
    "migrate": ("migrate",),
    "doctor": ("doctor",),
    "demo": ("demo",),
    "simulate": ("simulate", "--port", "0"),
}
LASTING = {"enqueue": 0.8, "simulate": 1.5, "demo": 3.0}  # seconds; these do not end by themselves, or too late


def start(some: Workers, *arguments: str, folder: Path, stdin: int = subprocess.DEVNULL) -> Worker:
    """As `Workers.start`, in a folder of its own (`demo` writes there) and with a stdin that may stay open."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")}
    streams = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115 - closed by `Workers.close`
    process = subprocess.Popen(
        [sys.executable, "-m", "etl", *arguments],
        env={**inherited, **some.env, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        stdin=stdin,
        stdout=streams[0],
        stderr=streams[1],
    )
    some.started.append(Worker(arguments, process, streams, some.secrets))
    return some.started[-1]


@pytest.fixture
def silent_pipe() -> Iterator[int]:
    """A stdin from which nothing ever comes."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def until(worker: Worker, condition: Callable[[], bool]) -> None:
    """Wait for it; the worker must not have ended before."""

    def has_come() -> bool:
        if condition():
            return True
        assert worker.process.poll() is None, (worker.wait(), worker.err[-2000:])
        return False

    wait_until(has_come, every=0.005)


def said(worker: Worker) -> str:
    """What it wrote to stderr so far."""
    return os.pread(worker.streams[1].fileno(), 1_000_000, 0).decode(errors="replace")


def stop(worker: Worker, number: int = signal.SIGTERM, *, within: float = GRACE + HARD_STOP) -> int:
    """Signal it; it must be over in time. Returns its exit code."""
    began = time.monotonic()
    worker.process.send_signal(number)
    code = worker.wait(within + 60)
    took = time.monotonic() - began
    assert took < within + SLACK, f"{worker.arguments} ended {took:.1f} s after the signal, not {within:.1f}"
    return code


def leased(database: Database) -> int:
    """Claims that somebody holds."""
    return int(scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'"))


def outcomes(database: Database) -> list[str | None]:
    """Of all runs, in order."""
    return [row["outcome"] for row in rows(database, "SELECT outcome FROM etl_runs ORDER BY started_at")]


def arrivals(checkly: Simulator, part: str) -> int:
    """Calls whose path holds `part` so far."""
    return sum(part in request.path for request in checkly.requests)


@pytest.fixture
def checkly(small_world: World) -> Iterator[Simulator]:
    """Checkly, a little slower, so that there is something to interrupt."""
    with Simulator(small_world, rate_limit=0) as running:
        yield running


# --- at any moment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment_ends_the_command_without_a_traceback(
    name: str, new_warehouse: Callable[[str], str], checkly: Simulator, tmp_path: Path, silent_pipe: int
) -> None:
    """Imports, the work itself and the interpreter's end included; a second run goes on."""
    checkly.add_fault(match="/v1/", kind="delay", seconds=0.02)
    moments = random.Random(name)
    stdin = silent_pipe if name == "enqueue" else subprocess.DEVNULL
    engines = ["sqlite", "postgresql"] if TIMES > 2 else [moments.choice(("sqlite", "postgresql"))]
    for turn, engine in enumerate(engines):
        url = new_warehouse(engine)
        with workers(checkly.url, url, CHECKLY_ETL_SCHEDULE__GRACE="1s") as some, closing(Database(url)) as database:
            if name == "replay":
                assert some.run("sync").process.returncode == 0
            whole = LASTING.get(name) or _seconds(some, name, tmp_path)
            for number in [SIGNALS[(turn + i) % 2] for i in range(max(2, TIMES // 5))]:
                worker = start(some, *COMMANDS[name], folder=tmp_path, stdin=stdin)
                time.sleep(moments.uniform(0, 1.1 * whole))
                ended_before = worker.process.poll() is not None
                code = _stop_early(worker, number)
                if code in (-number, 128 + number):
                    continue  # -number: before Python ran a line of ours; a shell says the same of both
                # It had done all that it had to do when the signal came.
                assert code == 0, (ended_before, code, worker.err)
                assert ended_before or name not in ("enqueue", "simulate"), worker.err
            assert leased(database) == 0, "the claims were given back"
            assert None not in outcomes(database)
            assert set(outcomes(database)) <= {"ok", "interrupted"}


def _seconds(some: Workers, name: str, folder: Path) -> float:
    began = time.monotonic()
    assert start(some, *COMMANDS[name], folder=folder).wait() == 0, some.started[-1].err
    return time.monotonic() - began


def _stop_early(worker: Worker, number: int) -> int:
    """As `stop`, but Python's own traceback from before our first line runs is not ours to prevent."""
    try:
        return stop(worker, number)
    except AssertionError:
        if "Traceback" in worker.err and number == signal.SIGINT and f"{os.sep}etl{os.sep}" not in worker.err:
            return -number
        raise


def test_a_signal_during_imports_shows_no_traceback(checkly: Simulator, new_warehouse: Callable[[str], str]) -> None:
    """From the moment that a line of ours runs (`-X importtime` tells when) to the first one of the command."""
    url = new_warehouse("sqlite")
    moments = random.Random(7)
    with workers(checkly.url, url, PYTHONPROFILEIMPORTTIME="1") as some:
        for turn in range(4 * TIMES):
            number = SIGNALS[turn % 2]
            wanted = moments.choice(
                ("etl.errors", "json", "etl.terminal", "etl.cli", "sqlalchemy.util", "etl.schema")
            )
            worker = some.start("status")
            until(worker, partial(_has_imported, worker, wanted))
            code = stop(worker, number)
            assert code in (-number, 128 + number), (wanted, code, worker.err[-500:])


def _has_imported(worker: Worker, name: str) -> bool:
    return re.search(rf"\| +{name}$", said(worker), re.MULTILINE) is not None


# --- in the middle of something -----------------------------------------------------------------------------------


def _hangs(match: str) -> Callable[[Simulator], None]:
    return lambda checkly: checkly.add_fault(match=match, kind="delay", seconds=600)


def _answers(status: int, retry_after: int, skip: int = 0) -> Callable[[Simulator], None]:
    headers = {"Retry-After": str(retry_after)}
    return lambda checkly: checkly.add_fault(match=DETAIL, kind="status", status=status, headers=headers, skip=skip)


# What is under way: (the fault, the call that shows that it has begun, settings)
MIDDLES: dict[str, tuple[Callable[[Simulator], None], str, dict[str, str]]] = {
    "a call that hangs": (_hangs(DETAIL), "/v1/test-sessions/", {}),
    "a list that hangs": (_hangs(LIST), "/v1/test-sessions", {}),
    "error groups that hang": (_hangs(GROUPS), GROUPS, {}),
    "a body that trickles": (
        lambda checkly: checkly.add_fault(match=DETAIL, kind="trickle", seconds=0.5),
        "/v1/test-sessions/",
        {},
    ),
    "a wait for the budget": (lambda _: None, "/v1/test-sessions/", {"CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "6"}),
    "a pause after 429": (_answers(429, 60, skip=5), "/v1/test-sessions/", {}),
    "the backoff of a retry": (_answers(503, 20, skip=5), "/v1/test-sessions/", {}),
}


@pytest.mark.parametrize("command", [("sync",), ("backfill", *LONG_AGO)], ids=["sync", "backfill"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_a_signal_in_the_middle_gives_every_claim_back_in_time(
    middle: str,
    command: tuple[str, ...],
    new_warehouse: Callable[[str], str],
    checkly: Simulator,
    peace: Callable[[str], Content],
) -> None:
    """143 or 130 within grace + 3 s, the run is called interrupted, what was saved stays, the next run ends it."""
    number, engine = _turn(middle, command)
    url = new_warehouse(engine)
    break_it, shown_by, env = MIDDLES[middle]
    break_it(checkly)
    with (
        workers(checkly.url, url, CHECKLY_ETL_SCHEDULE__GRACE="1s", **env) as some,
        closing(Database(url)) as database,
    ):
        worker = some.start(*command)
        calls = 6 if shown_by == "/v1/test-sessions/" else 1
        if middle == "a wait for the budget":
            calls = 5  # the sixth is the list
        until(worker, lambda: arrivals(checkly, shown_by) >= calls)
        time.sleep(0.3)  # so that what has been answered so far is saved: nothing depends on it
        before = scalar(database, "SELECT count(*) FROM test_sessions")
        assert stop(worker, number) == 128 + number, worker.err
        assert leased(database) == 0, worker.err
        assert outcomes(database) == ["interrupted"], worker.err
        assert scalar(database, "SELECT count(*) FROM test_sessions") >= before
        assert scalar(database, "SELECT coalesce(max(attempts), 0) FROM etl_queue") == 0, "nobody is blamed"
        held = "SELECT count(*) FROM etl_accounts WHERE discovery_token IS NOT NULL"
        assert scalar(database, held) == 0, "the lease on discovery is given back"

        checkly.clear_faults()
        _end_pauses(database)
        assert some.run("sync", CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE="0").process.returncode == 0
        _same(peace(engine), database)


def _turn(*what: object) -> tuple[int, str]:
    """Signal and engine: both of both are met over the table, the same ones every time."""
    dice = random.Random(repr(what))
    return dice.choice(SIGNALS), dice.choice(("sqlite", "postgresql"))


def _end_pauses(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_accounts SET paused_until = NULL"))


def _same(wanted: Content, database: Database) -> None:
    """Where a row of the queue came from is no part of what was exported."""
    found = everything(database)
    for content in (found, wanted := dict(wanted)):
        content["etl_queue"] = [(*row[:3], *row[5:]) for row in content["etl_queue"]]
    same_rows(wanted, found)


@contextmanager
def _locked(url: str, tables: str = "etl_queue, etl_accounts, etl_runs") -> Iterator[None]:
    """Somebody else holds the lock that every writer needs."""
    if url.startswith("sqlite"):
        import sqlite3

        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
        return
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE".encode())
        yield
        connection.rollback()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_database_is_locked_ends_in_time_and_the_next_run_goes_on(
    number: int, engine_name: str, warehouse_url: str, checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """Claims cannot be given back then; the next run of this machine does it, and calls the run interrupted."""
    checkly.add_fault(match=DETAIL, kind="delay", seconds=0.3)
    with (
        workers(checkly.url, warehouse_url, CHECKLY_ETL_SCHEDULE__GRACE="1s") as some,
        closing(Database(warehouse_url)) as database,
    ):
        worker = some.start("sync", CHECKLY_ETL_EXPORT__CONCURRENCY="2")
        until(worker, lambda: scalar(database, "SELECT count(*) FROM test_sessions") > 0)
        with _locked(warehouse_url):
            until(worker, lambda: _is_waiting(worker, warehouse_url))
            assert stop(worker, number) == 128 + number, worker.err
        checkly.clear_faults()
        assert some.run("sync").process.returncode == 0, some.started[-1].err
        assert leased(database) == 0
        assert outcomes(database) == ["interrupted", "ok"]
        _same(peace(engine_name), database)


@pytest.mark.parametrize(
    "command",
    [("enqueue", "11111111-1111-4111-8111-111111111111"), ("dead", "retry", "--all"), ("migrate",), ("replay",)],
    ids=lambda command: command[0],
)
def test_a_signal_ends_a_short_command_that_waits_for_a_lock(
    command: tuple[str, ...], engine_name: str, warehouse_url: str, checkly: Simulator
) -> None:
    number = signal.SIGINT if command[0] == "dead" else signal.SIGTERM
    with workers(checkly.url, warehouse_url, CHECKLY_ETL_SCHEDULE__GRACE="1s") as some:
        if command[0] == "migrate":  # a current schema needs no lock
            with closing(Database(warehouse_url)) as database, database.writing() as connection:
                connection.execute(text("UPDATE etl_views SET sha256 = 'older'"))
        with _locked(warehouse_url, "etl_queue, etl_views, etl_runs"):
            worker = some.start(*command)
            until(worker, lambda: _is_waiting(worker, warehouse_url))
            assert stop(worker, number) == 128 + number, worker.err


def _is_waiting(worker: Worker, url: str) -> bool:
    """PostgreSQL tells who waits for a lock. Of SQLite only this is seen: it has the file open, and had a second."""
    if url.startswith("sqlite"):
        with suppress(FileNotFoundError):
            files = [os.readlink(entry) for entry in Path(f"/proc/{worker.process.pid}/fd").iterdir()]
            if url.removeprefix("sqlite:///") in files:
                time.sleep(1.0)
                return True
        return False
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    return found is not None and found[0] > 0


@pytest.mark.parametrize("trouble", ["stall", "refuse"])
def test_a_signal_during_an_outage_of_the_warehouse_ends_in_time(
    trouble: str, new_warehouse: Callable[[str], str], checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """`stall`: a firewall that has forgotten the connection. `refuse`: nobody listens any more."""
    url = new_warehouse("postgresql")
    checkly.add_fault(match=DETAIL, kind="delay", seconds=0.3)
    server = psycopg.conninfo.conninfo_to_dict(url)
    host, port = str(server.get("host") or "127.0.0.1"), int(server.get("port") or 5432)
    with Proxy(host, port) as proxy, closing(Database(url)) as database:
        through = f"postgresql://{server.get('user', 'postgres')}@127.0.0.1:{proxy.port}/{server['dbname']}"
        with workers(checkly.url, through, CHECKLY_ETL_SCHEDULE__GRACE="1s") as some:
            worker = some.start("sync", CHECKLY_ETL_EXPORT__CONCURRENCY="2")
            until(worker, lambda: scalar(database, "SELECT count(*) FROM test_sessions") > 0)
            setattr(proxy, trouble, True)
            if trouble == "refuse":
                proxy.cut()
            time.sleep(1.0)  # a call takes a third of it: something is to be written by now
            if worker.process.poll() is None:
                assert stop(worker) in (143, 3), worker.err  # 3: it had found out before
            setattr(proxy, trouble, False)
            proxy.cut()
            checkly.clear_faults()
            assert some.run("sync").process.returncode == 0, some.started[-1].err
        assert leased(database) == 0
        assert outcomes(database)[0] in ("interrupted", "failed")
        _same(peace("postgresql"), database)


def test_a_second_signal_ends_at_once(warehouse_url: str, checkly: Simulator) -> None:
    """Who presses Ctrl-C twice does not want to wait; the next run of this machine gives the claims back."""
    _hangs(DETAIL)(checkly)
    with workers(checkly.url, warehouse_url, CHECKLY_ETL_SCHEDULE__GRACE="60s") as some:
        worker = some.start("sync")
        until(worker, lambda: arrivals(checkly, "/v1/test-sessions/") >= 6)
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert worker.process.poll() is None, "it waits for the calls that hang"
        assert stop(worker, within=0.2) == 143
        checkly.clear_faults()
        assert some.run("sync").process.returncode == 0
        with closing(Database(warehouse_url)) as database:
            assert leased(database) == 0
            assert outcomes(database) == ["interrupted", "ok"]


def test_what_comes_back_within_the_grace_is_saved(warehouse_url: str, checkly: Simulator) -> None:
    checkly.add_fault(match=DETAIL, kind="delay", seconds=1.0)
    with (
        workers(checkly.url, warehouse_url, CHECKLY_ETL_SCHEDULE__GRACE="10s") as some,
        closing(Database(warehouse_url)) as database,
    ):
        worker = some.start("sync")
        until(worker, lambda: arrivals(checkly, "/v1/test-sessions/") >= 8)
        assert stop(worker) == 143, worker.err
        calls = arrivals(checkly, "/v1/test-sessions/")
        assert scalar(database, "SELECT count(*) FROM test_sessions") == calls, "no call was in vain"
        assert leased(database) == 0


def test_enqueue_that_reads_a_pipe_ends_at_a_signal_and_queues_nothing(
    warehouse_url: str, checkly: Simulator, tmp_path: Path
) -> None:
    with workers(checkly.url, warehouse_url) as some, closing(Database(warehouse_url)) as database:
        for number in SIGNALS:
            reading, writing = os.pipe()
            os.write(writing, b"Test session ID: 11111111-1111-4111-8111-111111111111\n")
            worker = start(some, "enqueue", "-", folder=tmp_path, stdin=reading)
            until(worker, partial(_catches, worker, signal.SIGTERM))
            assert stop(worker, number, within=0.5) == 128 + number
            os.close(reading)
            os.close(writing)
        assert scalar(database, "SELECT count(*) FROM etl_queue") == 0


def _catches(worker: Worker, number: int) -> bool:
    """The process has a handler for the signal (proc(5): SigCgt is a mask)."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


# --- --max-time ---------------------------------------------------------------------------------------------------


def test_the_end_of_max_time_gives_claims_back_and_the_next_pass_goes_on(
    engine_name: str, warehouse_url: str, checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """Exit 0 unless something failed: a cron job that is cut in slices sends no mail."""
    checkly.add_fault(match=DETAIL, kind="delay", seconds=0.25)
    with (
        workers(checkly.url, warehouse_url, CHECKLY_ETL_EXPORT__CONCURRENCY="4") as some,
        closing(Database(warehouse_url)) as database,
    ):
        counts = [0]
        for _ in range(20):
            worker = some.run("sync", "--max-time", "1s", timeout=10)
            assert worker.process.returncode == 0, worker.err
            assert leased(database) == 0
            counts.append(int(scalar(database, "SELECT count(*) FROM test_sessions")))
            if "claims given back" not in worker.err:
                break
            assert counts[-1] > counts[-2], "each pass goes on where the one before it ended"
        assert len(counts) > 2, "one pass was enough: nothing is shown"
        assert set(outcomes(database)) == {"partial", "ok"}
        _same(peace(engine_name), database)


@pytest.mark.parametrize("middle", MIDDLES)
def test_max_time_ends_a_pass_that_waits(
    middle: str, new_warehouse: Callable[[str], str], checkly: Simulator
) -> None:
    """In `--max-time` and the grace for calls under way; no claim is left behind, nobody is blamed."""
    url = new_warehouse(_turn("max-time", middle)[1])
    break_it, _, env = MIDDLES[middle]
    break_it(checkly)
    with (
        workers(checkly.url, url, CHECKLY_ETL_SCHEDULE__GRACE="1s", **env) as some,
        closing(Database(url)) as database,
    ):
        began = time.monotonic()
        worker = some.run("sync", "--max-time", "2s", "--json")
        took = time.monotonic() - began
        # A pass in which nothing was ever answered is not fine.
        code, outcome = (3, "failed") if middle == "a list that hangs" else (0, "partial")
        assert worker.process.returncode == code, worker.err
        assert took < 2 + GRACE + HARD_STOP + SLACK, f"{took:.1f} s"
        assert f'"outcome": "{outcome}"' in worker.out, worker.out
        assert leased(database) == 0
        assert outcomes(database) == [outcome]
        assert scalar(database, "SELECT coalesce(max(attempts), 0) FROM etl_queue") == 0
        assert KEY not in worker.out

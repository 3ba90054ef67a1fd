"""PostgreSQL that crashes, PgBouncer in between, and networks that cut, delay and stall: nothing lost or doubled."""

from __future__ import annotations

import itertools
import os
import random
import re
import select
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta

import psycopg
import pytest

from etl import pipeline
from etl.database import Database
from etl.simulator import Simulator, World
from etl.tables import metadata
from tests.conftest import NOW, rows, scalar
from tests.documents import detail, entry, error_group, uuid
from tests.harness import (
    SECRETS,
    TIMES,
    Content,
    Worker,
    Workers,
    everything,
    make_due,
    rows_that_hold,
    same_rows,
    wait_until,
    workers,
)
from tests.proxy import Proxy
from tests.servers import OwnPostgres, PgBouncer

BACKFILL = ("backfill", "--since", "3000d")
FORCED = (*BACKFILL, "--force")
IS_CI = "CHECKLY_ETL_TEST_REAL" in os.environ
needs_pgbouncer = pytest.mark.skipif(
    not PgBouncer.is_here() and not IS_CI, reason="PgBouncer is not installed (apt-get install pgbouncer)"
)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    """A PostgreSQL on a TCP port, for the tests that put something before it and do not kill it."""
    with OwnPostgres() as running:
        yield running


@contextmanager
def _fresh(server: OwnPostgres) -> Iterator[str]:
    """A migrated, empty warehouse of its own on that server."""
    name = f"warehouse_{next(_numbers)}"
    with psycopg.connect(_named("postgres", server.url), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE warehouse".encode())
        yield _named(name, server.url)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def server_url(server: OwnPostgres) -> Iterator[str]:
    """A migrated, empty warehouse on it."""
    with _fresh(server) as url:
        yield url


@pytest.fixture
def slow_checkly(small_world: World) -> Iterator[Simulator]:
    """Checkly, a little slower, so that much can happen."""
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/", kind="delay", seconds=0.05)
        yield simulator


# --- PostgreSQL crashes -------------------------------------------------------------------------------------------


def test_postgresql_that_crashes_under_three_workers_loses_and_doubles_nothing(
    own_postgres: OwnPostgres, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    with workers(slow_checkly.url, own_postgres.url) as some:
        _crash_often(own_postgres, some)
        assert own_postgres.restarts == TIMES
        _ends_well(some, own_postgres.url)
    _equals_peace(own_postgres.url, peace("postgresql"))


@needs_pgbouncer
def test_postgresql_that_crashes_behind_pgbouncer_loses_and_doubles_nothing(
    own_postgres: OwnPostgres, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """PgBouncer keeps the clients' connections and has errors of its own for them."""
    with PgBouncer(own_postgres.url) as pooler, workers(slow_checkly.url, pooler.url) as some:
        _crash_often(own_postgres, some)
        _ends_well(some, own_postgres.url)
    _equals_peace(own_postgres.url, peace("postgresql"))


def test_a_server_that_is_down_is_told_by_every_command(own_postgres: OwnPostgres, simulator: Simulator) -> None:
    with workers(simulator.url, own_postgres.url) as some:
        own_postgres.stop()
        try:
            others = (("enqueue", uuid(1)), ("migrate",), ("status",), ("dead", "list"), ("replay",))
            crowd = [some.start(*command) for command in (("sync",), BACKFILL, *others)]
            for worker in crowd:
                assert (worker.wait(), worker.out) == (3, ""), (worker.arguments, worker.err)
                assert "refused" in worker.err, worker.err
        finally:
            own_postgres.start()


class _ImpatientPgBouncer(PgBouncer):
    """Tells its clients after two seconds, not after two minutes, that there is no server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with (self._folder / "pgbouncer.ini").open("a") as settings:
            settings.write("query_wait_timeout = 2\n")


# --- PgBouncer ----------------------------------------------------------------------------------------------------


@needs_pgbouncer
@pytest.mark.parametrize("pool_size", [5, 1])
def test_three_workers_through_pgbouncer_in_transaction_mode_export_the_same_rows(
    pool_size: int, server_url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """A pool of one: who waits for a second connection while he holds the first would wait for ever."""
    with PgBouncer(server_url, pool_size=pool_size) as pooler, workers(slow_checkly.url, pooler.url) as some:
        for _ in range(max(1, TIMES // 5)):
            crowd = [some.start(*command) for command in (("sync",), BACKFILL, FORCED)]
            for worker in crowd:
                assert worker.wait() == 0, worker.err[-2000:]
    _equals_peace(server_url, peace("postgresql"))


@needs_pgbouncer
def test_migrate_through_pgbouncer_makes_the_same_schema_also_from_several_processes_at_once(
    server: OwnPostgres, simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    with psycopg.connect(_named("postgres", server.url), autocommit=True) as connection:
        connection.execute("CREATE DATABASE nothing_yet TEMPLATE template0 ENCODING 'UTF8'")
    url = _named("nothing_yet", server.url)
    with PgBouncer(url) as pooler, workers(simulator.url, pooler.url) as some:
        crowd = [some.start("migrate") for _ in range(3)]
        for worker in crowd:
            assert worker.wait() == 0, worker.err
        assert "migrated" in {worker.out.split(":")[0] for worker in crowd}
        assert some.run("migrate").out.startswith("already current")
        last = some.run("sync")
        assert last.process.returncode == 0, last.err
    _equals_peace(url, peace("postgresql"))


@needs_pgbouncer
@pytest.mark.skipif(TIMES < 10, reason="a server that restarts is waited for; in the long form only")
def test_pgbouncer_that_is_there_while_its_server_is_not_is_told(
    own_postgres: OwnPostgres, simulator: Simulator
) -> None:
    with _ImpatientPgBouncer(own_postgres.url) as pooler, workers(simulator.url, pooler.url) as some:
        own_postgres.stop()
        try:
            crowd = [some.start(*command) for command in (("sync",), ("status",), ("migrate",), ("enqueue", uuid(1)))]
            for worker in crowd:
                assert worker.wait() == 3, (worker.arguments, worker.out, worker.err)
                assert "checkly-etl: warehouse postgresql://" in worker.err, worker.err
        finally:
            own_postgres.start()


# --- the network between us and PostgreSQL ------------------------------------------------------------------------


def test_a_network_that_cuts_connections_to_postgresql_loses_and_doubles_nothing(
    server: OwnPostgres, server_url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """Anything may be cut: a statement, its answer, a commit, its answer, the greeting."""
    with (
        Proxy("127.0.0.1", server.port, seed=3) as proxy,
        workers(slow_checkly.url, _through(proxy, server_url)) as some,
    ):
        ended: Counter[int] = Counter()
        for number in range(TIMES):
            proxy.cut_probability = (0.003, 0.01, 0.03)[number % 3]
            crowd = [some.start(*command) for command in (("sync",), FORCED, ("sync",))]
            for worker in crowd:
                ended[_truthful(worker)] += 1
        assert proxy.cuts > 0
        proxy.cut_probability = 0.0
        _ends_well(some, server_url)
    _equals_peace(server_url, peace("postgresql"))


def test_connections_that_are_all_cut_at_once_are_made_again(
    server: OwnPostgres, server_url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """A firewall forgets, a fail-over: one cut is no reason to give up."""
    chance = random.Random(9)
    with Proxy("127.0.0.1", server.port) as proxy, workers(slow_checkly.url, _through(proxy, server_url)) as some:
        for _ in range(TIMES):
            slow_checkly.clear_requests()
            crowd = [some.start(*FORCED), some.start("sync")]
            wait_until(lambda: _details(slow_checkly) > 5)
            for _ in range(3):
                time.sleep(chance.uniform(0.0, 0.2))
                proxy.cut()
            for worker in crowd:
                assert worker.wait() == 0, worker.err[-2000:]
    _equals_peace(server_url, peace("postgresql"))


def test_a_slow_and_stalling_network_to_postgresql_only_takes_time(
    server: OwnPostgres, server_url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """Longer than the lease: what another took over meanwhile is not doubled."""
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        workers(slow_checkly.url, server_url, CHECKLY_ETL_EXPORT__LEASE="1s") as some,
    ):
        proxy.delay = 0.005
        far = some.start("sync", CHECKLY_ETL_WAREHOUSE_URL=_through(proxy, server_url))
        wait_until(lambda: _details(slow_checkly) > 5)
        proxy.stall = True
        near = some.start("sync")
        time.sleep(1.5)  # the stall itself
        proxy.stall = False
        for worker in (far, near):
            assert worker.wait() == 0, worker.err[-2000:]
        _ends_well(some, server_url)
    _equals_peace(server_url, peace("postgresql"))


def test_sigterm_ends_a_worker_whose_warehouse_does_not_answer_any_more(
    server: OwnPostgres, server_url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    with (
        Proxy("127.0.0.1", server.port) as proxy,
        workers(slow_checkly.url, server_url, CHECKLY_ETL_SCHEDULE__GRACE="1s") as some,
    ):
        stuck = some.start("sync", CHECKLY_ETL_WAREHOUSE_URL=_through(proxy, server_url))
        wait_until(lambda: _details(slow_checkly) > 5)
        proxy.stall = True
        stuck.process.terminate()
        began = time.monotonic()
        assert stuck.wait(20) == 143
        assert time.monotonic() - began < 1 + 3 + 3  # the grace, the hard stop behind it, and a slow machine
        proxy.cut()
        _ends_well(some, server_url)
    _equals_peace(server_url, peace("postgresql"))


# --- a COMMIT of which nobody knows what became of it ---------------------------------------------------------------


class CommitCutter:
    """Between a client and PostgreSQL: cuts the connection at chosen commits, counted over all connections.

    `after`: the commit reaches the server and is done, only its answer never arrives. Otherwise it does not even
    reach the server. The client sees the same in both cases.
    """

    def __init__(self, port: int, cut_at: Callable[[int], bool], *, after: bool = True) -> None:
        self._target, self._cut_at, self._after = ("127.0.0.1", port), cut_at, after
        self._count, self._lock, self._closing = 0, threading.Lock(), threading.Event()
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> CommitCutter:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    @property
    def commits(self) -> int:
        """So many were asked for."""
        return self._count

    def _accept(self) -> None:
        while not self._closing.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target, timeout=10) as server, suppress(OSError):
            while not self._closing.is_set():
                ready = select.select([client, server], [], [], 0.05)[0]
                if server in ready:
                    piece = server.recv(65536)
                    if not piece:
                        return
                    client.sendall(piece)
                if client in ready:
                    piece = client.recv(65536)
                    if not piece:
                        return
                    if not re.search(rb"COMMIT\0", piece) or not self._is_next_cut():
                        server.sendall(piece)
                        continue
                    if self._after:
                        server.sendall(piece)
                        answer = b""
                        while not answer.endswith(b"Z\0\0\0\5I"):  # ready for a query, in no transaction: it is done
                            answer += server.recv(65536)
                        assert b"COMMIT\0" in answer
                    self.cuts += 1
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return

    def _is_next_cut(self) -> bool:
        with self._lock:
            self._count += 1
            return self._cut_at(self._count)


def _peculiar(simulator: Simulator) -> None:
    """Beside the small world: a document that must die, fields that nobody knows, a group that nobody read."""
    simulator.put_error_group(error_group(1, aNewField=1))
    simulator.put_test_session(
        detail(1, errorGroupIds=[error_group(1)["id"]], anotherNewField=True), entry(1, errorGroupIds=[])
    )
    simulator.put_test_session(detail(2, startedAt=17), entry(2))


Command = Callable[[pipeline.Etl], pipeline.Outcome]
_COMMANDS: dict[str, Command] = {
    "sync": pipeline.sync,
    "backfill": lambda etl: pipeline.backfill(etl, since=NOW - timedelta(days=3000), until=None),
    "replay": pipeline.replay,
}


@pytest.mark.parametrize("after", [True, False], ids=["done", "not-done"])
@pytest.mark.parametrize("command", _COMMANDS)
def test_a_commit_whose_answer_is_cut_off_neither_doubles_nor_loses_anything(
    command: str, after: bool, server_url: str, make_etl_at: Callable[[str, str], pipeline.Etl]
) -> None:
    """Each commit of a run in turn: the client cannot know whether it was done, and must be right in both cases.

    The same rows, the same counters, the same exit code as if nothing had been. In this process: the next run does
    not find it dead, so whatever it leaves behind, claims or a run that never ends, is there for long.
    """
    tiny = World(seed=1, now=NOW, days=1)
    wanted, commits = _with_a_cut_at(0, command, after, server_url, tiny, make_etl_at)
    assert commits >= 6
    problems: list[str] = []
    for number in range(1, commits + 1, 1 if TIMES >= 50 else 2):
        found, _ = _with_a_cut_at(number, command, after, server_url, tiny, make_etl_at)
        different = [name for name in wanted if found[name] != wanted[name]]
        problems += [f"commit {number} of {commits}: {name}: {found[name]}" for name in different]
    assert not problems, "\n".join(problem[:1500] for problem in problems)


def _with_a_cut_at(
    number: int,
    command: str,
    after: bool,
    url: str,
    world: World,
    make_etl_at: Callable[[str, str], pipeline.Etl],
) -> tuple[dict[str, object], int]:
    """What a run leaves behind whose connection is cut at that commit (0: at none), and how many commits it has."""
    with (
        Simulator(world, rate_limit=0) as simulator,
        CommitCutter(_port(url), lambda count: count == number, after=after) as way,
        closing(Database(url)) as database,
    ):
        with database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                if table.name != "etl_views":
                    connection.execute(table.delete())
        _peculiar(simulator)
        if command == "replay":
            ready = make_etl_at(simulator.url, url)
            pipeline.sync(ready)
            ready.database.close()
        etl = make_etl_at(simulator.url, _to_port(way.port, url))
        outcome = _COMMANDS[command](etl)
        etl.database.close()
        runs = (
            "SELECT outcome, error, test_sessions_saved, test_sessions_dead, results_saved FROM etl_runs ORDER BY 1"
        )
        left: dict[str, object] = {
            "exit code": outcome.exit_code,
            "failures": outcome.failures,
            "runs": [tuple(row.values()) for row in rows(database, runs)],
            "discovery's lease": scalar(database, "SELECT count(discovery_token) FROM etl_accounts"),
            **everything(database),
        }
        return left, way.commits


def test_a_command_whose_first_look_at_the_warehouse_is_cut_off_looks_again(
    server: OwnPostgres, server_url: str, simulator: Simulator
) -> None:
    """One lost connection is no outage, whatever was asked over it."""
    commands = (("sync",), ("enqueue", uuid(1)), ("status",), ("dead", "list"), BACKFILL)
    for command in commands:
        with (
            CommitCutter(server.port, lambda count: count == 1) as way,
            workers(simulator.url, _to_port(way.port, server_url)) as some,
        ):
            if command == ("sync",):
                _peculiar(simulator)
            worker = some.run(*command)
            assert way.cuts == 1
            assert worker.process.returncode == (1 if command == ("sync",) else 0), (command, worker.err[-1000:])


def test_commits_that_are_cut_off_again_and_again_under_three_workers_neither_double_nor_lose_anything(
    server: OwnPostgres, server_url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    for number in range(TIMES):
        chance = random.Random(number)
        with (
            CommitCutter(server.port, lambda _: chance.random() < 0.1, after=number % 2 == 0) as way,  # noqa: B023
            workers(slow_checkly.url, _to_port(way.port, server_url)) as some,
        ):
            crowd = [some.start(*command) for command in (("sync",), FORCED, ("sync",))]
            for worker in crowd:
                _truthful(worker)
            assert way.cuts > 0
    with workers(slow_checkly.url, server_url) as some:
        _ends_well(some, server_url)
    _equals_peace(server_url, peace("postgresql"))


# --- the network between us and Checkly -----------------------------------------------------------------------------


def test_a_network_to_checkly_that_cuts_delays_and_refuses_loses_and_doubles_nothing(
    engine_name: str, new_warehouse: Callable[[str], str], simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    url = new_warehouse(engine_name)
    with _proxy_of(simulator) as proxy, workers(f"http://127.0.0.1:{proxy.port}", url) as some:
        for number in range(TIMES):
            proxy.cut_probability = (0.02, 0.1, 0.3)[number % 3]
            proxy.delay = 0.002
            crowd = [some.start(*command) for command in (("sync",), FORCED)]
            time.sleep(0.7)
            proxy.refuse = True
            time.sleep(0.5)
            proxy.refuse = False
            for worker in crowd:
                assert worker.wait() in (0, 1, 3), worker.err[-2000:]
                if worker.process.returncode == 3:
                    assert "checkly-etl" in worker.err or "error" in worker.err
        assert proxy.cuts > 0
        proxy.cut_probability = proxy.delay = 0.0
        _ends_well(some, url)
    _equals_peace(url, peace(engine_name))


def test_checkly_behind_a_network_that_stalls_for_longer_than_the_timeout_is_an_outage_and_no_sessions_fault(
    engine_name: str, new_warehouse: Callable[[str], str], simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    url = new_warehouse(engine_name)
    with (
        _proxy_of(simulator) as proxy,
        closing(Database(url)) as database,
        workers(f"http://127.0.0.1:{proxy.port}", url, CHECKLY_ETL_CHECKLY__TIMEOUT="1s") as some,
    ):
        proxy.delay = 0.02
        worker = some.start("sync")
        wait_until(lambda: _details(simulator) > 8)
        proxy.stall = True
        began = time.monotonic()
        assert worker.wait(60) == 3, worker.err[-2000:]
        assert time.monotonic() - began < 20
        assert "did not answer within 1 s" in worker.err
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0, "claims given back"
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE attempts > 0 OR state = 'dead'") == 0
        proxy.cut()
        proxy.stall, proxy.delay = False, 0.0
        _ends_well(some, url)
    _equals_peace(url, peace(engine_name))


def test_checkly_that_refuses_connections_is_exit_3(
    engine_name: str, new_warehouse: Callable[[str], str], simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    url = new_warehouse(engine_name)
    with _proxy_of(simulator) as proxy, workers(f"http://127.0.0.1:{proxy.port}", url) as some:
        proxy.refuse = True
        for command in (("sync",), BACKFILL):
            worker = some.run(*command)
            assert worker.process.returncode == 3, worker.err
            assert "cannot be reached" in worker.err
        proxy.refuse = False
        _ends_well(some, url)
    _equals_peace(url, peace(engine_name))


# --- helpers ------------------------------------------------------------------------------------------------------


def _crash_often(server: OwnPostgres, some: Workers) -> None:
    """TIMES crashes under three workers; one that ended, because it was done or the outage too long, begins anew."""
    chance = random.Random(17)
    commands = (("sync",), FORCED, ("sync",))
    crowd = [some.start(*command) for command in commands]
    for _ in range(TIMES):
        with suppress(subprocess.TimeoutExpired):
            crowd[1].process.wait(chance.uniform(0.4, 1.5))
        server.restart(down=chance.choice((0.0, 0.0, 0.3)))
        for place, worker in enumerate(crowd):
            if worker.process.poll() is not None:
                _truthful(worker)
                crowd[place] = some.start(*commands[place])
    for worker in crowd:
        _truthful(worker)


def _truthful(worker: Worker) -> int:
    """0 and no complaint, or 3 and the warehouse's name in the complaint; never anything else."""
    code = worker.wait()
    assert code in (0, 3), f"exit {code}: {worker.arguments} {worker.out} {worker.err[-3000:]}"
    complaints = [line for line in worker.err.splitlines() if "Z error " in line or line.startswith("checkly-etl:")]
    if code == 3:
        assert any("warehouse" in line for line in complaints), worker.err[-3000:]
    else:
        assert not complaints, complaints
    return code


def _ends_well(some: Workers, url: str) -> None:
    """When the trouble is over, what had to wait is due, and one pass does all that is left."""
    with closing(Database(url)) as database:
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'dead'") == 0, "died undeserved"
        waiting = scalar(database, "SELECT count(*) FROM etl_queue WHERE attempts > 0")
        if waiting:
            make_due(database)
        last = some.run("sync")
        assert last.process.returncode == 0, last.err[-2000:]
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state <> 'queued'") == 0
        unfinished = rows(database, "SELECT command, process FROM etl_runs WHERE outcome IS NULL")
        assert unfinished == [], "a run that is over does not seem to run for ever"


def _equals_peace(url: str, wanted: Content) -> None:
    with closing(Database(url)) as database:
        found = everything(database)
        for secret in SECRETS:
            assert rows_that_hold(database, secret) == []
    same_rows(_without_source(wanted), _without_source(found))


def _without_source(content: Content) -> Content:
    """Where a row of the queue came from depends on who was first."""
    return {**content, "etl_queue": [(*row[:3], *row[5:]) for row in content["etl_queue"]]}


def _details(simulator: Simulator) -> int:
    return sum(request.path.startswith("/v1/test-sessions/") for request in simulator.requests)


def _through(proxy: Proxy, url: str) -> str:
    return _to_port(proxy.port, url)


def _to_port(port: int, url: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", url)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def _named(database: str, url: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


def _proxy_of(simulator: Simulator) -> Proxy:
    host, _, port = simulator.url.removeprefix("http://").partition(":")
    return Proxy(host, int(port))

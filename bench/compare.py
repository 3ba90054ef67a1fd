"""checkly-etl beside a dlt pipeline and the floors: seconds, CPU seconds and peak memory, as a table.

    make bench                                                  all parts, about half an hour
    make bench BENCH_ARGS="load --sessions 200 --rounds 1"      one part, small

From the root of the checkout. Parts: `load` (first load and identical reload), `latency` (the same API, each answer
25 ms late), `memory` (peak at several sizes), `small` (`--help`, an idle `sync`), `budget` (a backfill that waits for
its rate budget), `discovery` (a long list of which nothing is new). The API is a process of its own, whose CPU counts
for nobody, and so is each contestant; rounds are interleaved, medians are printed, and what was written is compared
with the source after each load. PostgreSQL is that of TEST_DATABASE_URL (a role that may create databases:
`etl_bench_…`, dropped at the end), else the tests' own. The figures are of this machine and of what else it does.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from bench.api import ACCOUNT, digest

ROOT = Path(__file__).parent.parent
OURS = str(ROOT / ".venv" / "bin" / "checkly-etl")
DLT = str(ROOT / ".venv" / "bench" / "bin" / "python")
POSTGRESQL, SQLITE = "PostgreSQL", "SQLite"
INSERTING = f"dlt as it comes, {POSTGRESQL}"
PARTS = ("load", "latency", "memory", "small", "budget", "discovery")

# A process's peak counts from its parent's at the fork: so the parent is this, which needs next to nothing.
LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
figures = [time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), *figures], file)
"""

OUR_ROWS = (
    "SELECT test_session_id, test_session_result_id, r.status FROM test_sessions s "
    "JOIN test_session_results r USING (test_session_id) ORDER BY 1, 2"
)
DLT_ROWS = (
    "SELECT s.test_session_id, r.test_session_result_id, r.status FROM {0}test_sessions s "
    "JOIN {0}test_sessions__results r ON r._dlt_parent_id = s._dlt_id ORDER BY s.test_session_id {1}, "
    "r.test_session_result_id {1}"
)
# What is written down about a session, and what about the work.
WRITTEN = """
    SELECT (relname NOT LIKE 'etl\\_%' OR relname = 'etl_payloads') AS is_data,
           sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint
    FROM pg_stat_user_tables GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Took:
    """One process: with its children, without the API and the database server."""

    wall: float
    cpu: float
    peak: float  # MB
    out: str = ""


@dataclass(slots=True)
class Table:
    """Figures by contestant and step, in the order in which they first came."""

    took: dict[tuple[str, str], list[Took]] = field(default_factory=dict)

    def add(self, who: str, what: str, took: Took) -> None:
        self.took.setdefault((who, what), []).append(took)
        print(f"  {who} {what}: {took.wall:.2f} s, {took.cpu:.2f} CPU s, {took.peak:.0f} MB", file=sys.stderr)

    def median(self, who: str, what: str) -> Took | None:
        all_of_it = self.took.get((who, what))
        if not all_of_it:
            return None
        names = ("wall", "cpu", "peak")
        return Took(*(statistics.median(getattr(took, name) for took in all_of_it) for name in names))

    def print(self, peer: Callable[[str], str]) -> None:
        """As Markdown; `peer` says beside which contestant another is put, or nothing."""
        print("| what | wall s | CPU s | peak MB | dlt / it, wall | dlt / it, CPU |")
        print("| --- | --- | --- | --- | --- | --- |")
        for who, what in self.took:
            here = self.median(who, what)
            there = self.median(peer(who), what) if peer(who) != who else None
            assert here is not None
            ratios = ["–", "–"]
            if there is not None:
                ratios = [f"{there.wall / here.wall:.1f} ×", f"{there.cpu / here.cpu:.1f} ×"]
            cells = [
                ", ".join(filter(None, (who, what))),
                f"{here.wall:.2f}",
                f"{here.cpu:.2f}",
                f"{here.peak:.0f}",
                *ratios,
            ]
            print(f"| {' | '.join(cells)} |")


@dataclass(slots=True)
class Bench:
    """Where it all happens: an API, a server, a folder."""

    folder: Path
    server: str  # URL of a PostgreSQL
    concurrency: int
    env: dict[str, str]
    api: str = ""
    expected: dict[str, Any] = field(default_factory=dict)
    wal: list[str] = field(default_factory=list)  # what forced reloads wrote, in words
    made: list[str] = field(default_factory=list)  # databases

    def run(self, argv: Sequence[str], env: dict[str, str] | None = None) -> Took:
        """A process as a user would start it, its output into files. Raises if it fails."""
        figures, out, err = (self.folder / name for name in ("figures", "out", "err"))
        with out.open("w") as stdout, err.open("w") as stderr:
            launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCHER, str(figures), *argv],
                env={**self.env, **(env or {})}, cwd=self.folder, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
            try:
                launcher.wait()
            except BaseException:
                os.killpg(launcher.pid, signal.SIGKILL)
                raise
        code, wall, cpu, peak = json.loads(figures.read_text())
        if code != 0:
            raise SystemExit(f"{' '.join(argv)}: exit {code}\n{err.read_text()[-3000:]}")
        return Took(wall, cpu, peak, out.read_text())

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[None]:
        """The API, with these arguments of `bench.api`."""
        argv = [sys.executable, "-m", "bench.api", *arguments]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                self.expected = json.loads(process.stdout.readline())
                self.api = self.expected["url"]
                yield
            finally:
                process.terminate()

    def store(self, kind: str, name: str) -> str:
        """The URL of an empty database."""
        if kind == SQLITE:
            for file in self.folder.glob(f"{name}*.db*"):
                file.unlink()
            return f"sqlite:///{self.folder / name}.db"
        database = f"etl_bench_{name.replace('-', '_')}"
        self.drop([database])
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE \"{database}\" TEMPLATE template0 ENCODING 'UTF8'".encode())
        self.made.append(database)
        return make_url(self.server).set(database=database).render_as_string(hide_password=False)

    def drop(self, databases: Sequence[str]) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            for database in databases:
                connection.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)'.encode())

    def settle(self) -> None:
        """No contestant pays for the pages that the one before it left behind."""
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def verify(self, who: str, url: str, rows: str, table: str) -> None:
        """Are the rows those of the source? Raises if not."""
        lines: Iterator[str]
        if url.startswith("sqlite"):
            with sqlite3.connect(url.removeprefix("sqlite:///")) as file:
                sessions = file.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                found = digest(f"{s} {r} {status}" for s, r, status in file.execute(rows))
        else:
            with psycopg.connect(url) as connection, connection.cursor("rows") as cursor:
                cursor.itersize = 10_000
                sessions = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()[0]  # type: ignore[index]
                lines = (f"{s} {r} {status}" for s, r, status in cursor.execute(rows.encode()))
                found = digest(lines)
        if (sessions, found) != (self.expected["test_sessions"], self.expected["digest"]):
            raise SystemExit(f"{who}: {sessions} test sessions, and not all rows are those of the source")

    # --- contestants ---

    def ours(self, url: str, *, payloads: bool = True, limit: int = 0) -> dict[str, str]:
        return {
            "CHECKLY_API_URL": self.api,
            "CHECKLY_API_KEY": "bench",
            "CHECKLY_ACCOUNT_ID": ACCOUNT,
            "CHECKLY_ETL_WAREHOUSE_URL": url,
            "CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": str(limit),
            "CHECKLY_ETL_EXPORT__CONCURRENCY": str(self.concurrency),
            "CHECKLY_ETL_EXPORT__KEEP_PAYLOADS": str(payloads).lower(),
        }

    def run_ours(self, table: Table, kind: str, *, payloads: bool = True, reload: bool = True) -> None:
        who = f"checkly-etl, {kind}" + ("" if payloads else ", payloads off")
        url = self.store(kind, "ours")
        env = self.ours(url, payloads=payloads)
        self.run([OURS, "migrate"], env)
        for what, options in (("first load", []), ("reload", ["--force"])):
            if what == "reload" and not reload:
                continue
            self.settle()
            before = self._written(url)
            table.add(who, what, self.run([OURS, "backfill", "--since", "30d", *options], env))
            if what == "reload" and before is not None:
                data, others, wal = (b - a for a, b in zip(before, self._written(url) or before, strict=True))
                self.wal.append(
                    f"{who}: {data:,} rows of test sessions, {others:,} of queue and runs, {wal / 1e6:,.1f} MB of WAL"
                )
            self.verify(who, url, OUR_ROWS, "test_sessions")

    def _written(self, url: str) -> tuple[int, int, int] | None:
        """Rows of the data and of the work, and bytes of WAL: of the whole server, so somebody else's, too."""
        if url.startswith("sqlite"):
            return None
        time.sleep(0.5)  # for the figures of a process that has just ended
        with psycopg.connect(url) as connection:
            rows: dict[bool, int] = dict(connection.execute(WRITTEN).fetchall())
            (wal,) = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone() or (0,)
            return int(rows.get(True, 0)), int(rows.get(False, 0)), int(wal)

    def run_dlt(self, table: Table, kind: str, *, reload: bool = True, inserts: bool = False) -> None:
        who = INSERTING if inserts else f"dlt, {kind}"
        url = self.store(kind, "dlt")
        with tempfile.TemporaryDirectory(dir=self.folder) as state:
            argv = [DLT, str(ROOT / "bench" / "dlt_pipeline.py"), "--api", self.api, "--url", url, "--state", state]
            argv += ["--concurrency", str(self.concurrency), *(["--inserts"] if inserts else [])]
            for what in ("first load", "reload")[: 1 + reload]:
                self.settle()
                table.add(who, what, self.run(argv, {"RUNTIME__DLTHUB_TELEMETRY": "false"}))
                schema, collate = ("", "") if kind == SQLITE else ("checkly.", 'COLLATE "C"')
                self.verify(who, url, DLT_ROWS.format(schema, collate), f"{schema}test_sessions")

    def run_floor(self, table: Table, floor: str) -> None:
        argv = [sys.executable, str(ROOT / "bench" / "floors.py"), floor]
        if floor != "copy":
            who = "floor: one requests session" if floor == "requests" else f"floor: {self.concurrency} threads"
            argv += ["--api", self.api, "--concurrency", str(self.concurrency)]
            table.add(who, "everything fetched, thrown away", self.run(argv))
            return
        url = self.store(POSTGRESQL, "floor")
        argv += ["--dump", str(self.folder / "dump"), "--url", url]
        for what, options in (("first load", []), ("reload", ["--reload"])):
            self.settle()
            table.add("floor: parse and COPY, no HTTP", what, self.run([*argv, *options]))


def _ratios(one: Took, other: Took) -> str:
    return f"{one.wall / other.wall:.2f} × wall, {one.cpu / other.cpu:.2f} × CPU"


def _peer(who: str) -> str:
    """The dlt pipeline into the same database."""
    return f"dlt, {SQLITE if SQLITE in who else POSTGRESQL}" if who.startswith("checkly-etl") else who


def load(bench: Bench, arguments: argparse.Namespace) -> None:
    """First load and identical reload, of all contestants in turn."""
    table = Table()
    contestants: dict[str, Callable[[], None]] = {
        "ours-postgresql": lambda: bench.run_ours(table, POSTGRESQL),
        "ours-postgresql-without-payloads": lambda: bench.run_ours(table, POSTGRESQL, payloads=False),
        "dlt-postgresql": lambda: bench.run_dlt(table, POSTGRESQL),
        "dlt-postgresql-inserts": lambda: bench.run_dlt(table, POSTGRESQL, inserts=True),
        "ours-sqlite": lambda: bench.run_ours(table, SQLITE),
        "dlt-sqlite": lambda: bench.run_dlt(table, SQLITE),
        **{f"floor-{name}": partial(bench.run_floor, table, name) for name in ("requests", "threads", "copy")},
    }
    with bench.serving("--sessions", str(arguments.sessions), "--dump", str(bench.folder / "dump")):
        for turn in range(arguments.rounds):
            print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr)
            for name, run in contestants.items():
                if arguments.only in name:
                    run()
        kilobytes = bench.expected["body_bytes"] / 1000
    print(f"\nload: {arguments.sessions:,} sessions x 20 results, {kilobytes:.1f} kB each, no latency\n")
    table.print(_peer)
    for who in (f"checkly-etl, {POSTGRESQL}", f"checkly-etl, {POSTGRESQL}, payloads off"):
        loaded, theirs = table.median(who, "first load"), table.median(INSERTING, "first load")
        if loaded and theirs:
            print(f"\n{INSERTING} / {who}, first load: {_ratios(theirs, loaded)}")
    ours = table.median(f"checkly-etl, {POSTGRESQL}", "reload")
    floor_ = table.median("floor: one requests session", "everything fetched, thrown away")
    if ours and floor_:
        print(f"\nReload beside one requests session: {_ratios(ours, floor_)}")
    print("\nWritten by a forced reload (WAL is that of the whole server, so somebody else's, too):\n")
    for line in bench.wal:
        print(f"- {line}")


def latency(bench: Bench, arguments: argparse.Namespace) -> None:
    """First load from an API whose answers are late."""
    table = Table()
    with bench.serving("--sessions", str(arguments.sessions), "--latency", str(arguments.latency)):
        for _ in range(arguments.rounds):
            bench.run_ours(table, POSTGRESQL, reload=False)
            bench.run_dlt(table, POSTGRESQL, reload=False)
            bench.run_floor(table, "threads")
    late = f"answers {arguments.latency:g} ms late, {bench.concurrency} at once"
    print(f"\nlatency: {arguments.sessions:,} sessions, {late}\n")
    table.print(_peer)


def memory(bench: Bench, arguments: argparse.Namespace) -> None:
    """Peak at several sizes, one run each."""
    table = Table()
    for size in arguments.sizes:
        sized = Table()
        with bench.serving("--sessions", str(size)):
            bench.run_ours(sized, POSTGRESQL)
            bench.run_ours(sized, SQLITE)
            if size <= arguments.dlt_to:
                bench.run_dlt(sized, POSTGRESQL, reload=False)
        for (who, what), (took,) in sized.took.items():
            table.took[who, f"{what}, {size:,} sessions"] = [took]
    print("\nmemory, one run each\n")
    table.print(_peer)


def small(bench: Bench, arguments: argparse.Namespace) -> None:
    """What is done often: `--help`, and a `sync` that finds nothing new."""
    table = Table()
    calls: dict[str, int] = {}
    with bench.serving("--sessions", "500", "--days", "1.9"):
        for kind in (POSTGRESQL, SQLITE):
            url = bench.store(kind, "ours")
            table.add("checkly-etl migrate", kind, bench.run([OURS, "migrate"], bench.ours(url)))
            bench.run([OURS, "sync"], bench.ours(url))
        for _ in range(max(3, arguments.rounds)):
            table.add("python -c pass", "", bench.run([sys.executable, "-c", "pass"]))
            table.add("checkly-etl --help", "", bench.run([OURS, "--help"]))
            for kind, url in ((POSTGRESQL, _url(bench, POSTGRESQL)), (SQLITE, _url(bench, SQLITE))):
                took = bench.run([OURS, "sync", "--json"], bench.ours(url, limit=500))
                table.add("checkly-etl sync, nothing new", kind, took)
                calls[kind] = json.loads(took.out)["api_requests"]
    print("\nsmall: 500 sessions in two days, all of them exported already; budget of 500 calls a minute\n")
    table.print(lambda who: who)
    print(f"\nCalls of such a sync: {', '.join(f'{n} ({kind})' for kind, n in calls.items())}")


def budget(bench: Bench, arguments: argparse.Namespace) -> None:
    """How much of its rate budget a backfill of several minutes uses, of an API that allows just as much."""
    limit, sessions = 300, 1000
    with bench.serving("--sessions", str(sessions), "--limit", str(limit)):
        url = bench.store(POSTGRESQL, "ours")
        bench.run([OURS, "migrate"], bench.ours(url))
        took = bench.run([OURS, "backfill", "--since", "30d", "--json"], bench.ours(url, limit=limit))
        bench.verify("checkly-etl", url, OUR_ROWS, "test_sessions")
    ran = json.loads(took.out)
    calls = ran["api_requests"]
    least = (calls - 1) // limit * 60  # seconds: a window's calls at its beginning
    print(f"\nbudget: {sessions:,} sessions, {limit} calls a minute, by the exporter and by the API\n")
    print(
        f"- {calls:,} calls in {took.wall:.1f} s; {least} s is the least: {least / took.wall:.1%} of the budget used"
    )
    print(f"- {ran['api_retries']} calls were answered 429 or failed otherwise")


def discovery(bench: Bench, arguments: argparse.Namespace) -> None:
    """A pass over a long list of which everything is exported already."""
    table = Table()
    listed = arguments.listed
    print(f"\ndiscovery: {listed:,} sessions of one result, exported already, listed again by `backfill`\n")
    with bench.serving("--sessions", str(listed), "--results", "1"):
        for kind in (POSTGRESQL, SQLITE):
            url = bench.store(kind, "ours")
            bench.run([OURS, "migrate"], bench.ours(url))
            bench.run([OURS, "backfill", "--since", "30d"], bench.ours(url))
            took = bench.run([OURS, "backfill", "--since", "30d", "--json"], bench.ours(url))
            table.add("checkly-etl, nothing new", kind, took)
            ran = json.loads(took.out)
            print(f"- {kind}: {ran['api_requests']:,} calls, {ran['test_sessions_saved']} saved")
    print()
    table.print(lambda who: who)


def _url(bench: Bench, kind: str) -> str:
    if kind == SQLITE:
        return f"sqlite:///{bench.folder / 'ours'}.db"
    return make_url(bench.server).set(database="etl_bench_ours").render_as_string(hide_password=False)


def _machine(bench: Bench) -> str:
    with psycopg.connect(bench.server) as connection:
        server = connection.info.server_version // 10000
    dlt = subprocess.run(
        [DLT, "-c", "from importlib.metadata import version; print(version('dlt'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL {server}, "
        f"SQLite {sqlite3.sqlite_version}, dlt {dlt}; load before it began {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--sessions", type=int, default=2000, help="of the parts load and latency")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="NAME", help="of the part load: ours, dlt, floor, sqlite, ...")
    parser.add_argument("--latency", type=float, default=25.0, metavar="MS", help="of the part latency")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 8000, 50_000], help="of the part memory")
    parser.add_argument("--listed", type=int, default=100_000, metavar="SESSIONS", help="of the part discovery")
    parser.add_argument(
        "--dlt-to", type=int, default=8000, metavar="SESSIONS", help="not in the part memory above it"
    )
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"{part} is none of {', '.join(PARTS)}")
    measure = dict(zip(PARTS, (load, latency, memory, small, budget, discovery), strict=True))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its databases are dropped all the same
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-bench-")))
        server = os.environ.get("TEST_DATABASE_URL")
        if not server:
            from tests.servers import OwnPostgres

            server = stack.enter_context(OwnPostgres()).url
        # As after an install: our modules are compiled, and nothing that is set here makes Python another one.
        compileall.compile_dir(ROOT / "etl", quiet=1)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CHECKLY_"))}
        bench = Bench(folder, server, arguments.concurrency, env)
        stack.callback(lambda: bench.drop(bench.made))
        print(_machine(bench), flush=True)
        for part in arguments.parts:
            measure[part](bench, arguments)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

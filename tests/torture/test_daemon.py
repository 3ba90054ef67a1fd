"""The daemon as a process: a world that changes, an API, a warehouse and brokers that come and go, kill -9, signals.

At the end the warehouse holds what one would that had exported the final world in peace, every id that was sent is
in it, and no message is left anywhere.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pika
import psycopg
import pytest
import redis
import yaml
from sqlalchemy import text
from sqlalchemy.engine import make_url

from etl import config, pipeline
from etl.database import Database
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from tests.brokers import OwnRabbitMQ, OwnRedis, amqp_declare, amqp_publish, redis_push
from tests.conftest import ACCOUNT, KEY, rows, scalar
from tests.documents import detail, entry, error_group, result, uuid
from tests.harness import (
    SECRETS,
    TIMES,
    WAREHOUSE_PASSWORD,
    Worker,
    Workers,
    everything,
    make_due,
    rows_that_hold,
    same_rows,
    wait_until,
    with_password,
)
from tests.servers import OwnPostgres, free_port

Json = dict[str, Any]
QUEUE = "checkly-test-sessions"
REDIS_PASSWORD = "redis-password-of-the-tests"
SEEDS = range(1 if TIMES < 50 else 10)
PASSES = 50 if TIMES < 5 else 200 if TIMES < 50 else 1000
IS_CI = "CHECKLY_ETL_TEST_REAL" in os.environ
DETAIL = "^/v1/test-sessions/"
SETTLED = 8.0  # seconds after its end in which a test session that is known by id only may still change
# A fifth of all calls; each fault takes its part of what the ones before it left.
FAULTS: list[Json] = [
    {"kind": "status", "status": 500, "probability": 0.03},
    {"kind": "status", "status": 503, "headers": {"Retry-After": "0.2"}, "probability": 0.03},
    {"kind": "status", "status": 429, "headers": {"Retry-After": "0.1"}, "probability": 0.03},
    {"kind": "reset", "probability": 0.03},
    {"kind": "cut", "probability": 0.03},
    {"kind": "garbage", "probability": 0.03},
    {"kind": "not_utf8", "probability": 0.02},
    {"kind": "redirect", "probability": 0.02},
    {"kind": "delay", "seconds": 0.1, "probability": 0.1},
]
needs_brokers = pytest.mark.skipif(
    not (OwnRedis.is_here() and OwnRabbitMQ.is_here()) and not IS_CI, reason="no redis-server or no rabbitmq-server"
)


# --- Checkly, which may be away -----------------------------------------------------------------------------------


class Checkly:
    """A simulator that may be stopped and started on its port, and all that it was ever told."""

    def __init__(self) -> None:
        self._world = World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1)
        self._lock = threading.RLock()
        self._details: dict[str, Json] = {}
        self._entries: dict[str, Json] = {}
        self._groups: list[Json] = []
        self._removed: set[str] = set()
        self._requests: list[str] = []
        self.faults: list[Json] = []
        self.puts = 0
        self._simulator: Simulator | None = Simulator(self._world, rate_limit=0)
        self.url = self._simulator.url
        self._simulator.__enter__()

    def __enter__(self) -> Checkly:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def paths(self) -> list[str]:
        """Of every call that came."""
        with self._lock:
            now = [request.path for request in self._simulator.requests] if self._simulator else []
            return [*self._requests, *now]

    def down(self) -> None:
        """Nobody listens any more."""
        with self._lock:
            if self._simulator is not None:
                self._requests = self.paths
                self._simulator.__exit__(None, None, None)
                self._simulator = None

    def up(self) -> None:
        """At the same address, with the same documents and faults."""
        with self._lock:
            self._simulator = Simulator(self._world, port=int(self.url.rpartition(":")[2]), rate_limit=0)
            for group in self._groups:
                self._simulator.put_error_group(group)
            for id_ in self._details.keys() - self._removed:
                self._simulator.put_test_session(self._details[id_], self._entries.get(id_))
            self.set_faults(self.faults)
            self._simulator.__enter__()

    def set_faults(self, faults: list[Json]) -> None:
        """These and no others."""
        with self._lock:
            self.faults = faults
            if self._simulator is not None:
                self._simulator.clear_faults()
                for fault in faults:
                    self._simulator.add_fault(**fault)

    def put(self, document: Json, listed: Json | None = None) -> None:
        """A test session as it is from now on."""
        with self._lock:
            id_ = document["testSessionId"]
            self._details[id_] = document
            if listed is not None:
                self._entries[id_] = listed
            # A change of the entry may be seen after that of the detail: two versions.
            self.puts += 1 + (id_ in self._entries)
            if self._simulator is not None:
                self._simulator.put_test_session(document, self._entries.get(id_))

    def put_group(self, group: Json) -> None:
        """An error group."""
        with self._lock:
            self._groups.append(group)
            if self._simulator is not None:
                self._simulator.put_error_group(group)

    def remove(self, id_: str) -> None:
        """Retention has passed."""
        with self._lock:
            self._removed.add(id_)
            if self._simulator is not None:
                self._simulator.remove_test_session(id_)

    def bring_back(self) -> None:
        """All that was removed, as it was: what a warehouse keeps of it."""
        with self._lock:
            self.down()
            self._removed.clear()
            self.up()


# --- one installation ---------------------------------------------------------------------------------------------


@dataclass
class Installation:
    """A warehouse, a Checkly, inboxes and a config.yaml; daemons are started on it."""

    folder: Path
    warehouse_url: str
    checkly: Checkly
    redis: OwnRedis | None = None
    rabbitmq: OwnRabbitMQ | None = None
    export: Json = field(default_factory=dict)
    schedule: Json = field(default_factory=dict)
    timeout: str = "2s"  # of a call
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.file = self.folder / "ids.txt"
        env = {"CHECKLY_API_KEY": KEY, "WAREHOUSE_PASSWORD": WAREHOUSE_PASSWORD, "REDIS_PASSWORD": REDIS_PASSWORD}
        env["AMQP_PASSWORD"] = "guest"
        self.workers = Workers(env, (*SECRETS, REDIS_PASSWORD))
        self.stack.callback(self.workers.close)

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @property
    def is_sqlite(self) -> bool:
        return self.warehouse_url.startswith("sqlite")

    def config(self, warehouse_url: str | None = None) -> Path:
        """Written anew: one daemon's own address to look at it, `self.address`."""
        self.port = free_port()
        inbox: list[Json] = [{"file": str(self.file)}]
        if self.redis is not None:
            url = self.redis.url.replace(REDIS_PASSWORD, "${REDIS_PASSWORD}")
            inbox.append({"url": url, "queue": QUEUE})
        if self.rabbitmq is not None:
            inbox.append({"url": self.rabbitmq.url.replace(":guest@", ":${AMQP_PASSWORD}@"), "queue": QUEUE})
        settings = {
            "checkly": {"api_url": self.checkly.url, "account_id": ACCOUNT, "timeout": self.timeout},
            "warehouse": {"url": self._shown(warehouse_url or self.warehouse_url)},
            "export": {
                "requests_per_minute": 0,
                "running_poll": "1s",
                "settle": ["2s", f"{SETTLED:.0f}s"],
                **self.export,
            },
            "schedule": {"interval": "1s", "grace": "3s", **self.schedule},
            "inbox": inbox,
            "observe": {"listen": f"127.0.0.1:{self.port}"},
        }
        path = self.folder / f"config-{self.port}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def _shown(self, url: str) -> str:
        return (
            url
            if url.startswith("sqlite")
            else with_password(url).replace(WAREHOUSE_PASSWORD, "${WAREHOUSE_PASSWORD}")
        )

    def daemon(self, *arguments: str) -> Daemon:
        """One more of them, serving probes."""
        path = self.config()
        started = Daemon(self.workers.start("daemon", "--config", str(path), *arguments), self.port)
        started.until(lambda: started.get("/livez")[0] == 200)
        return started

    def etl(self, warehouse_url: str) -> Etl:
        """The same settings in this process, for another warehouse and without inboxes."""
        path = self.config(warehouse_url)
        settings = yaml.safe_load(path.read_text())
        del settings["inbox"]
        path.write_text(yaml.safe_dump(settings))
        return Etl(config.load(path, dict(self.workers.env)), Database(warehouse_url))

    def known(self, *, with_list_entry: bool = False) -> set[str]:
        """Ids of test_sessions; of none while the warehouse is away."""
        query = "SELECT test_session_id FROM test_sessions"
        if with_list_entry:
            query += " WHERE summary_sha256 IS NOT NULL"
        with suppress(psycopg.Error, sqlite3.Error):
            if self.is_sqlite:
                with closing(sqlite3.connect(str(make_url(self.warehouse_url).database), timeout=1)) as file:
                    return {str(row[0]) for row in file.execute(query)}
            with psycopg.connect(self.warehouse_url, connect_timeout=2) as connection:
                return {str(row[0]) for row in connection.execute(query)}
        return set()

    def hurry(self) -> None:
        """What failed is tried again now: a test does not wait for minutes."""
        with closing(Database(self.warehouse_url)) as database, database.writing() as connection:
            connection.execute(
                text("UPDATE etl_queue SET available_at = enqueued_at WHERE attempts > 0 AND state = 'queued'")
            )

    def left(self) -> dict[str, int]:
        """Messages that wait somewhere, taken or not."""
        found: dict[str, int] = {}
        if self.redis is not None:
            with closing(redis.Redis.from_url(self.redis.url)) as client:
                for key in (QUEUE, f"{QUEUE}:checkly-etl"):
                    found[key] = int(client.llen(key))
        if self.rabbitmq is not None:
            with closing(pika.BlockingConnection(pika.URLParameters(self.rabbitmq.url))) as connection:
                found["rabbitmq"] = connection.channel().queue_declare(QUEUE, passive=True).method.message_count
        return {name: count for name, count in found.items() if count}


@dataclass
class Daemon:
    """One that runs."""

    worker: Worker
    port: int

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def passes(self) -> float:
        """That have ended."""
        return self.metric("checkly_etl_passes_total")

    def said(self) -> str:
        """Its log so far."""
        return os.pread(self.worker.streams[1].fileno(), 10_000_000, 0).decode(errors="replace")

    def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait for it; the daemon must not end before."""

        def has_come() -> bool:
            if condition():
                return True
            assert self.worker.process.poll() is None, (self.worker.process.returncode, self.said()[-3000:])
            return False

        try:
            wait_until(has_come, timeout, every=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()[-3000:]}") from None

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal it; its exit code, and the seconds that it took."""
        began = time.monotonic()
        self.worker.process.send_signal(number)
        return self.worker.wait(60), time.monotonic() - began


# --- producers ----------------------------------------------------------------------------------------------------


TRACE = "ffffffff-1111-4222-8333-ffffffffffff"
NOISE = ("deploy 17 is done", '{"traceId": "%s"}' % TRACE, f"https://app.checklyhq.com/checks/{TRACE}", "ünï ☃ {")  # noqa: UP031


def as_bare(id_: str) -> str:
    return id_


def as_shout(id_: str) -> str:
    return id_.upper()


def as_link(id_: str) -> str:
    return f"https://app.checklyhq.com/accounts/{ACCOUNT}/test-sessions/{id_}"


def as_output(id_: str) -> str:
    return (
        "Running 2 checks in eu-central-1.\n\n  \x1b[32m✔\x1b[39m home.spec.ts\n"
        f"  trace id: {TRACE}\n\n  \x1b[37mTest session ID:\x1b[39m {id_}\n"
        f"Detailed session summary at: \x1b[4m\x1b[36mhttps://app.checklyhq.com/test-sessions/{id_}\x1b[39m\x1b[24m"
    )


def as_json(id_: str) -> str:
    return json.dumps({"testSessionId": id_, "traceId": TRACE, "results": [{"id": TRACE}]})


def as_list(id_: str) -> str:
    listed = {"id": id_, "status": "PASSED", "provider": "API", "projectId": TRACE}
    return json.dumps({"data": [listed], "pagination": {"nextId": TRACE, "length": 1}}, indent=2)


FORMATS = (as_bare, as_shout, as_link, as_output, as_json, as_list)


class Producer(threading.Thread):
    """Sends what is put into it, one message after the other, as often as it takes."""

    def __init__(self, name: str, send: Callable[[str], None], seed: str) -> None:
        super().__init__(name=name, daemon=True)
        self._send = send
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._chance = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.retries = 0

    def put(self, text_: str) -> None:
        """To be sent soon."""
        self._texts.put(text_)

    def end(self, timeout: float = 60.0) -> None:
        """Wait until all is sent."""
        self._texts.put(None)
        self.join(timeout)
        assert not self.is_alive(), f"{self.name} does not get rid of its messages"

    def run(self) -> None:
        while (text_ := self._texts.get()) is not None:
            while True:
                try:
                    self._send(text_)
                except (AssertionError, subprocess.SubprocessError):
                    self.retries += 1
                    time.sleep(0.3)  # as a CI job would
                else:
                    break
            self.sent[text_] += 1
            time.sleep(self._chance.uniform(0, 0.05))


@dataclass
class File:
    """What CI jobs append to; a line may come in two pieces, and the file is rotated."""

    path: Path
    chance: random.Random
    rotate: threading.Event = field(default_factory=threading.Event)

    def append(self, text_: str) -> None:
        if self.rotate.is_set() and self.path.exists():
            self.path.rename(self.path.with_suffix(".1"))
            self.rotate.clear()
        data = f"{text_}\n".encode()
        middle = self.chance.randrange(len(data)) if self.chance.random() < 0.3 else 0
        with self.path.open("ab", buffering=0) as file:
            file.write(data[:middle])
            if middle:
                time.sleep(self.chance.uniform(0, 0.5))
            file.write(data[middle:])


# --- the world that changes ---------------------------------------------------------------------------------------


def moment(seconds_from_now: float = 0.0) -> str:
    """As Checkly writes it."""
    then = datetime.now(UTC) + timedelta(seconds=seconds_from_now)
    return then.isoformat(timespec="milliseconds")[:-6] + "Z"


class Story(threading.Thread):
    """Test sessions appear, run, end, shrink, get error groups late and vanish, by a timetable made from a seed.

    `send` is told of an id when CI would tell it.
    """

    def __init__(
        self, place: Installation, send: Callable[[str], None], *, seed: int, count: int, seconds: float
    ) -> None:
        super().__init__(name="story", daemon=True)
        self._place, self._checkly, self._send = place, place.checkly, send
        self._chance = random.Random(f"story {seed}")
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.unlisted: set[str] = set()
        self.waited_for: set[str] = set()
        self.error: BaseException | None = None
        kinds = [
            self._ends_at_once,
            self._runs_listed,
            self._is_not_sent,
            self._gets_a_group_late,
            self._runs_unlisted,
            self._shrinks,
            self._is_listed_late,
            self._vanishes,
            self._vanishes_running,
        ]
        for number in range(1, count + 1):
            kind = kinds[number % len(kinds)]
            self._at(self._chance.uniform(0, seconds), lambda kind=kind, number=number: kind(number))  # type: ignore[misc]

    def end(self, timeout: float) -> None:
        """Wait until the last event."""
        end = time.monotonic() + timeout
        while self.is_alive() and time.monotonic() < end:
            self.join(0.5)
            self._place.hurry()
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), f"never exported, so that it could not vanish: {sorted(self.waited_for)}"

    def run(self) -> None:
        try:
            began = time.monotonic()
            while self._events:
                at, _, event = heapq.heappop(self._events)
                time.sleep(max(0.0, began + at - time.monotonic()))
                self._now = time.monotonic() - began
                event()
        except BaseException as error:
            self.error = error

    _now = 0.0

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        """So long after what happens now."""
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), event))

    def _document(self, number: int, results: int = 2, **fields: Any) -> Json:
        began = moment(-self._chance.uniform(1, 60))
        rows_ = [result(i, checkId=uuid(0xC000 + i), startedAt=began) for i in range(1, results + 1)]
        status = self._chance.choice(("PASSED", "FAILED", "CANCELLED"))
        return detail(number, startedAt=began, stoppedAt=moment(), status=status, results=rows_) | fields

    def _running(self, number: int, results: int = 3) -> Json:
        document = self._document(number, results, status="RUNNING", stoppedAt=None)
        for row in document["results"][1:]:
            row.update(resultType="PENDING", status="RUNNING", startedAt=None, stoppedAt=None)
        return document

    def _entry(self, number: int, document: Json) -> Json:
        same = {name: document[name] for name in ("status", "startedAt", "stoppedAt", "errorGroupIds")}
        return entry(number, **same, created_at=document["startedAt"], updated_at=moment())

    def _put(self, number: int, document: Json, *, listed: bool) -> None:
        self._checkly.put(document, self._entry(number, document) if listed else None)
        if not listed:
            self.unlisted.add(uuid(number))

    def _tell(self, number: int) -> None:
        self._at(self._chance.uniform(0, 0.5), lambda: self._send(uuid(number)))

    def _ends(self, number: int, seconds: float, before: Json, *, listed: bool, results: int) -> None:
        def end() -> None:
            final = self._document(number, results, startedAt=before["startedAt"])
            self._put(number, final, listed=listed)

        self._at(seconds, end)

    def _ends_at_once(self, number: int) -> None:
        self._put(number, self._document(number), listed=True)
        self._tell(number)

    def _runs_listed(self, number: int) -> None:
        document = self._running(number)
        self._put(number, document, listed=True)
        self._tell(number)
        self._ends(number, self._chance.uniform(1, 4), document, listed=True, results=4)

    def _is_not_sent(self, number: int) -> None:
        self._put(number, self._document(number, 5), listed=True)

    def _gets_a_group_late(self, number: int) -> None:
        """One that is listed and one that is not, in turn."""
        listed = number % 2 == 0
        document = self._document(number)
        self._put(number, document, listed=listed)
        self._tell(number)

        def group() -> None:
            known = error_group(number)
            self._checkly.put_group(known)
            changed = json.loads(json.dumps(document))
            changed["errorGroupIds"] = changed["results"][0]["errorGroupIds"] = [known["id"]]
            self._put(number, changed, listed=listed)

        self._at(1.5, group)

    def _runs_unlisted(self, number: int) -> None:
        """Its results become fewer while it runs."""
        document = self._running(number, results=6)
        self._put(number, document, listed=False)
        self._tell(number)
        self._at(1.2, lambda: self._put(number, {**document, "results": document["results"][:2]}, listed=False))
        self._ends(number, self._chance.uniform(2, 5), document, listed=False, results=3)

    def _shrinks(self, number: int) -> None:
        """After its end."""
        listed = number % 2 == 0
        document = self._document(number, 5)
        self._put(number, document, listed=listed)
        self._tell(number)
        self._at(1.5, lambda: self._put(number, {**document, "results": document["results"][1:3]}, listed=listed))

    def _is_listed_late(self, number: int) -> None:
        document = self._document(number)
        self._checkly.put(document)
        self._tell(number)
        self._at(2.0, lambda: self._put(number, document, listed=True))

    def _vanishes(self, number: int, document: Json | None = None, *, listed: bool = True) -> None:
        """When it has been exported; its id is sent once more."""
        self._put(number, document or self._document(number), listed=listed)
        self._tell(number)

        def vanish() -> None:
            # One that was exported by its id may be gone before any list told of it: in peace it would tell more.
            if uuid(number) not in self._place.known(with_list_entry=listed):
                self.waited_for.add(uuid(number))
                self._at(0.5, vanish)
                return
            self.waited_for.discard(uuid(number))
            self._checkly.remove(uuid(number))
            self._tell(number)

        self._at(1.0, vanish)

    def _vanishes_running(self, number: int) -> None:
        self._vanishes(number, self._running(number), listed=False)


# --- the story ----------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What became of a story, for `bench/daemon.py`."""

    sent: int
    retried: int
    lost: list[str]
    saved: int
    seconds: float


def live_through(
    place: Installation,
    *,
    seed: int,
    count: int,
    seconds: float,
    troubles: Sequence[str],
    server: OwnPostgres | None,
    peace_url: str,
) -> Told:
    """Let the story happen under troubles; compare with peace. Fails with the first difference."""
    began = time.monotonic()
    chance = random.Random(f"troubles {seed}")
    file = File(place.file, random.Random(f"file {seed}"))
    producers = [Producer("file", file.append, f"file {seed}")]
    if place.redis is not None:
        url = place.redis.url
        producers.append(Producer("redis", lambda message: redis_push(url, QUEUE, message), f"redis {seed}"))
    if place.rabbitmq is not None:
        amqp = place.rabbitmq.url
        amqp_declare(amqp, QUEUE)
        producers.append(Producer("rabbitmq", lambda message: amqp_publish(amqp, QUEUE, message), f"rabbit {seed}"))
    sent: set[str] = set()
    noise: dict[str, set[str]] = {producer.name: set() for producer in producers}

    def send(id_: str) -> None:
        sent.add(id_)
        producer = chance_of_ids.choice(producers)
        producer.put(chance_of_ids.choice(FORMATS)(id_))
        if chance_of_ids.random() < 0.2:
            said = chance_of_ids.choice(NOISE)
            noise[producer.name].add(said)
            producer.put(said)

    chance_of_ids = random.Random(f"ids {seed}")
    story = Story(place, send, seed=seed, count=count, seconds=seconds)
    place.checkly.set_faults(FAULTS)
    daemon = place.daemon("-v")
    for thread in (*producers, story):
        thread.start()

    def kill() -> None:
        nonlocal daemon
        daemon.worker.kill()
        daemon = place.daemon("-v")

    def terminate() -> None:
        nonlocal daemon
        code, took = daemon.stop()
        assert (code, took < 3 + 3) == (0, True), (code, took, daemon.worker.err[-3000:])
        daemon = place.daemon("-v")

    def api() -> None:
        place.checkly.down()
        time.sleep(chance.uniform(1, 2))
        place.checkly.up()

    def rotate() -> None:
        # Of a file that was never read nothing is known by which it could be found again.
        with closing(Database(place.warehouse_url)) as warehouse:
            wait_until(lambda: scalar(warehouse, "SELECT count(position) FROM etl_inboxes"), every=0.2)
        file.rotate.set()

    deeds: dict[str, Callable[[], object]] = {"kill": kill, "terminate": terminate, "api": api, "rotate": rotate}
    if server is not None:
        deeds["postgres"] = lambda: server.restart(down=chance.choice((0.0, 0.5)))
    if place.redis is not None:
        deeds["redis"] = place.redis.restart
    if place.rabbitmq is not None:
        deeds["rabbitmq"] = place.rabbitmq.restart
    order = list(troubles)
    chance.shuffle(order)
    for trouble in order:
        time.sleep(chance.uniform(0.2, 1.5))
        deeds[trouble]()
    story.end(60)
    for producer in producers:
        producer.end()

    place.checkly.set_faults([])
    with closing(Database(place.warehouse_url)) as database:
        calm = scalar(database, "SELECT max(started_at) FROM etl_runs")

        def is_quiet() -> bool:
            place.hurry()
            run = rows(database, "SELECT started_at, outcome FROM etl_runs ORDER BY started_at DESC LIMIT 2")[-1]
            is_done = run["started_at"] > calm and run["outcome"] in ("ok", "partial")
            return (
                is_done
                and not scalar(database, "SELECT count(*) FROM etl_queue WHERE state <> 'dead'")
                and not place.left()
            )

        daemon.until(is_quiet, 60)
        code, took = daemon.stop()
        assert (code, took < 3 + 3) == (0, True), (code, took, daemon.worker.err[-3000:])
        for one in place.workers.started:
            assert "Traceback" not in one.err, one.err[-5000:]
            assert not any(secret in one.err + one.out for secret in place.workers.secrets)

        # Nothing is left behind, nothing died, nothing was taken for an id that is none.
        dead = rows(database, "SELECT test_session_id, error_kind, last_error FROM etl_queue WHERE state = 'dead'")
        assert dead == []
        assert place.left() == {}
        assert scalar(database, "SELECT count(*) FROM etl_inboxes WHERE reader_token IS NOT NULL") == 0
        assert rows(database, "SELECT command FROM etl_runs WHERE outcome IS NULL") == []
        lost = sorted(sent - place.known())
        assert lost == []
        _rejects_are(database, noise)

        # Each was exported once: no version of a document was written twice, and each row is as in peace.
        saved = int(scalar(database, "SELECT sum(test_sessions_saved) FROM etl_runs"))
        assert saved <= place.checkly.puts
        place.checkly.bring_back()
        etl = place.etl(peace_url)
        with closing(etl.database) as peaceful:
            peaceful.run(lambda c: pipeline.enqueue_texts(c, etl.settings, sorted(story.unlisted)))
            outcome = pipeline.sync(etl)
            make_due(peaceful)
            assert (outcome.word, pipeline.sync(etl).word) == ("ok", "ok"), outcome.error
            with peaceful.writing() as connection:
                # What runs for ever waits there; here it was seen to be gone.
                connection.execute(text("DELETE FROM etl_queue"))
            same_rows(everything(peaceful), everything(database))
        for secret in place.workers.secrets:
            assert rows_that_hold(database, secret) == []
    messages = sum(sum(producer.sent.values()) for producer in producers)
    retried = sum(producer.retries for producer in producers)
    return Told(messages, retried, lost, saved, time.monotonic() - began)


def _rejects_are(database: Database, noise: dict[str, set[str]]) -> None:
    """Exactly what held no id; a file's lines are read together, and noise beside an id is no message of its own."""
    found: dict[str, set[str]] = {name: set() for name in noise}
    for row in rows(database, "SELECT inbox, text FROM etl_inbox_rejects"):
        name = {"f": "file", "r": "redis", "a": "rabbitmq"}[row["inbox"][0]]
        found[name].update(row["text"].splitlines() if name == "file" else [row["text"]])
    for name in noise.keys() - {"file"}:
        assert found[name] == noise[name], name
    assert found["file"] <= noise["file"]


@contextmanager
def an_installation(folder: Path, url: str, *, brokers: bool = True, **more: Any) -> Iterator[Installation]:
    """With brokers of its own."""
    with ExitStack() as stack:
        checkly = stack.enter_context(Checkly())
        if brokers:
            more["redis"] = stack.enter_context(OwnRedis(REDIS_PASSWORD))
            more["rabbitmq"] = stack.enter_context(OwnRabbitMQ())
        yield stack.enter_context(Installation(folder, url, checkly, **more))


@needs_brokers
@pytest.mark.parametrize("seed", SEEDS)
def test_a_daemon_under_a_changing_world_and_every_trouble_exports_what_peace_would_have(
    seed: int, own_postgres: OwnPostgres, tmp_path: Path
) -> None:
    server = own_postgres
    with psycopg.connect(server.url.replace("/warehouse", "/postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE peace TEMPLATE warehouse")
    troubles = ("kill", "kill", "terminate", "api", "postgres", "postgres", "redis", "rabbitmq", "rotate")
    with an_installation(tmp_path, server.url) as place:
        live_through(
            place,
            seed=seed,
            count=72,
            seconds=12.0,
            troubles=troubles,
            server=server,
            peace_url=server.url.replace("/warehouse", "/peace"),
        )


def test_a_daemon_on_sqlite_under_a_changing_world_exports_what_peace_would_have(
    new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        checkly = stack.enter_context(Checkly())
        server = stack.enter_context(OwnRedis(REDIS_PASSWORD)) if OwnRedis.is_here() else None
        place = stack.enter_context(Installation(tmp_path, new_warehouse("sqlite"), checkly, redis=server))
        troubles = ("kill", "terminate", "api", "rotate", *(("redis",) if server else ()))
        live_through(
            place,
            seed=100,
            count=36,
            seconds=6.0,
            troubles=troubles,
            server=None,
            peace_url=new_warehouse("sqlite"),
        )


# --- between taking a message, committing its id and acknowledging it ---------------------------------------------


@contextmanager
def held_commits(url: str) -> Iterator[Callable[[], bool]]:
    """Nobody writes into the queue, until the end of `with`; tells whether somebody waits to."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO%queue%'"
    )
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as onlooker:
        holder.execute("LOCK TABLE etl_queue IN SHARE ROW EXCLUSIVE MODE")
        yield lambda: bool((onlooker.execute(waiting).fetchone() or [0])[0])
        with suppress(psycopg.OperationalError):  # the server was restarted
            holder.rollback()


@needs_brokers
@pytest.mark.parametrize("inbox", ["redis", "rabbitmq", "file"])
def test_messages_that_were_taken_when_daemon_broker_or_warehouse_died_are_exported_once(
    inbox: str, own_postgres: OwnPostgres, tmp_path: Path
) -> None:
    """Killed before the commit of their ids, and after it but before the acknowledgement."""
    numbers = itertools.count(1)
    expected: set[str] = set()
    with ExitStack() as stack:
        checkly = stack.enter_context(Checkly())
        place = Installation(tmp_path, own_postgres.url, checkly, export={"settle": []})
        broker: OwnRedis | OwnRabbitMQ | None = None
        if inbox == "redis":
            broker = place.redis = stack.enter_context(OwnRedis(REDIS_PASSWORD))
        elif inbox == "rabbitmq":
            broker = place.rabbitmq = stack.enter_context(OwnRabbitMQ())
            amqp_declare(broker.url, QUEUE)
        stack.enter_context(place)
        daemon = place.daemon()
        daemon.until(lambda: daemon.passes() >= 1)

        def send(message: str) -> None:
            if isinstance(broker, OwnRedis):
                redis_push(broker.url, QUEUE, message)
            elif isinstance(broker, OwnRabbitMQ):
                amqp_publish(broker.url, QUEUE, message)
            else:
                with place.file.open("a") as file:
                    file.write(f"{message}\n")

        def send_some() -> None:
            some = list(itertools.islice(numbers, 5))
            put_some(checkly, some, listed=False)
            expected.update(uuid(number) for number in some)
            for number in some:
                send(as_bare(uuid(number)))

        def recovers() -> None:
            daemon.until(lambda: place.known() == expected and not place.left())
            count = daemon.passes()  # what came once more is done as well
            daemon.until(lambda: daemon.passes() >= count + 2)

        send_some()
        recovers()

        with held_commits(own_postgres.url) as is_one_held:
            send_some()
            daemon.until(is_one_held)
            daemon.worker.kill()
        daemon = place.daemon()
        recovers()

        if broker is not None:
            with held_commits(own_postgres.url) as is_one_held:
                send_some()
                daemon.until(is_one_held)
                frozen = broker.processes()
                for pid in frozen:
                    os.kill(pid, signal.SIGSTOP)
            daemon.until(lambda: _is_queued(own_postgres.url, expected))
            daemon.worker.kill()
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            daemon = place.daemon()
            recovers()

            with held_commits(own_postgres.url) as is_one_held:
                send_some()
                daemon.until(is_one_held)
                broker.restart()
            recovers()

        with held_commits(own_postgres.url) as is_one_held:
            send_some()
            daemon.until(is_one_held)
            own_postgres.restart()
        recovers()

        assert daemon.stop()[0] == 0
        with closing(Database(own_postgres.url)) as database:
            assert scalar(database, "SELECT sum(test_sessions_saved) FROM etl_runs") == len(expected)
            assert scalar(database, "SELECT count(*) FROM etl_queue") == 0
            assert scalar(database, "SELECT count(*) FROM etl_inbox_rejects") == 0


def _is_queued(url: str, ids: set[str]) -> bool:
    """Each waits or is exported."""
    query = "SELECT test_session_id FROM etl_queue UNION SELECT test_session_id FROM test_sessions"
    with psycopg.connect(url) as connection:
        return {str(row[0]) for row in connection.execute(query)} >= ids


# --- signals ------------------------------------------------------------------------------------------------------

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SLACK = 1.5  # for two busy cores


def put_some(checkly: Checkly, numbers: Sequence[int], *, listed: bool = True) -> None:
    """Test sessions that have ended a while ago."""
    for number in numbers:
        began, ended = moment(-3600), moment(-3000)
        document = detail(number, startedAt=began, stoppedAt=ended)
        same = {"startedAt": began, "stoppedAt": ended, "created_at": began, "updated_at": ended}
        checkly.put(document, entry(number, **same) if listed else None)


def details(checkly: Checkly) -> int:
    """Test sessions that were asked for."""
    return sum(path.startswith("/v1/test-sessions/") for path in checkly.paths)


@pytest.mark.parametrize("seconds", [0.5, 600.0], ids=["slow", "hanging"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_middle_of_a_daemons_pass_gives_the_claims_back_and_is_exit_0(
    number: int, seconds: float, engine_name: str, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    grace = 2
    url = new_warehouse(engine_name)
    with (
        Checkly() as checkly,
        Installation(tmp_path, url, checkly, schedule={"grace": f"{grace}s"}, timeout="60s") as place,
        closing(Database(url)) as database,
    ):
        put_some(checkly, range(1, 61))
        checkly.set_faults([{"kind": "delay", "seconds": seconds, "match": DETAIL, "probability": 1}])
        daemon = place.daemon()
        daemon.until(lambda: details(checkly) >= 8)
        code, took = daemon.stop(number)
        assert code == 0, daemon.worker.err
        assert took < grace + SLACK
        assert seconds < grace or took > grace - 1
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
        assert scalar(database, "SELECT count(*) FROM etl_queue WHERE attempts > 0 OR state = 'dead'") == 0
        assert [row["outcome"] for row in rows(database, "SELECT outcome FROM etl_runs")] == ["interrupted"]
        saved = len(place.known())
        assert scalar(database, "SELECT count(*) FROM etl_queue") == 60 - saved
        assert (8 <= saved < 60) if seconds < grace else saved == 0, "what was under way has its grace"

        checkly.set_faults([])
        daemon = place.daemon()
        daemon.until(lambda: len(place.known()) == 60)
        assert daemon.stop(number)[0] == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_a_daemon_at_once_and_the_next_one_goes_on(
    number: int, engine_name: str, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    url = new_warehouse(engine_name)
    with (
        Checkly() as checkly,
        Installation(tmp_path, url, checkly, schedule={"grace": "60s"}, timeout="60s") as place,
    ):
        put_some(checkly, range(1, 31))
        checkly.set_faults([{"kind": "delay", "seconds": 600, "match": DETAIL}])
        daemon = place.daemon()
        daemon.until(lambda: details(checkly) >= 8)
        daemon.worker.process.send_signal(number)
        time.sleep(1)
        assert daemon.worker.process.poll() is None, "the first one waits for the grace"
        code, took = daemon.stop(number)
        assert code == 128 + number
        assert took < SLACK
        checkly.set_faults([])
        daemon = place.daemon()
        daemon.until(lambda: len(place.known()) == 30)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_an_idle_daemon_at_once(
    number: int, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    url = new_warehouse("sqlite")
    with Checkly() as checkly, Installation(tmp_path, url, checkly, schedule={"interval": "1h"}) as place:
        daemon = place.daemon()
        daemon.until(lambda: daemon.passes() == 1)
        code, took = daemon.stop(number)
        assert code == 0
        assert took < SLACK


def test_a_signal_at_any_moment_of_a_daemon_leaves_nothing_behind(
    engine_name: str, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    """Imports, the first pass and the interpreter's end included."""
    chance = random.Random(3)
    url = new_warehouse(engine_name)
    with (
        Checkly() as checkly,
        Installation(tmp_path, url, checkly, schedule={"grace": "1s"}) as place,
        closing(Database(url)) as database,
    ):
        put_some(checkly, range(1, 41))
        checkly.set_faults([{"kind": "delay", "seconds": 0.03}])
        for turn in range(max(2, TIMES)):
            number = SIGNALS[turn % 2]
            worker = place.workers.start("daemon", "--config", str(place.config()))
            time.sleep(chance.uniform(0.0, 2.5))
            worker.process.send_signal(number)
            began = time.monotonic()
            try:
                code = worker.wait(30)
            except AssertionError:  # Python's own, from before our first line runs
                assert number == signal.SIGINT
                assert f"{os.sep}etl{os.sep}" not in worker.err, worker.err
                code = worker.process.returncode
            assert time.monotonic() - began < 1 + SLACK
            assert code in (0, -number, 128 + number), (code, worker.err)
            assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
            assert rows(database, "SELECT outcome FROM etl_runs WHERE outcome IS NULL") == []
            assert scalar(database, "SELECT count(*) FROM etl_inboxes WHERE reader_token IS NOT NULL") == 0


# --- what fails, recovers -----------------------------------------------------------------------------------------


@contextmanager
def always_live(daemon: Daemon) -> Iterator[None]:
    """/livez says 200 all the time."""
    found: Counter[int] = Counter()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            found[daemon.get("/livez")[0]] += 1

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    yield
    over.set()
    looking.join()
    assert set(found) == {200}, found


def unwell(daemon: Daemon, reason: str) -> Callable[[], bool]:
    """/healthz says 503 and why."""

    def is_so() -> bool:
        status, said = daemon.get("/healthz")
        return status == 503 and reason in said

    return is_so


def well(daemon: Daemon) -> bool:
    return daemon.get("/healthz")[0] == 200


def test_a_daemon_outlives_an_api_that_is_gone_or_refuses_and_a_schema_that_moved(
    engine_name: str, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    url = new_warehouse(engine_name)
    numbers = itertools.count(1)
    with (
        Checkly() as checkly,
        Installation(tmp_path, url, checkly) as place,
        closing(Database(url)) as database,
    ):
        daemon = place.daemon()

        def recovers() -> None:
            number = next(numbers)
            put_some(checkly, [number])
            daemon.until(lambda: uuid(number) in place.known() and well(daemon))

        revision = scalar(database, "SELECT version_num FROM etl_schema_version")

        def move_to(version: str) -> None:
            with database.writing() as connection:
                connection.execute(text("UPDATE etl_schema_version SET version_num = :to"), {"to": version})

        with always_live(daemon):
            recovers()
            checkly.down()
            daemon.until(unwell(daemon, "cannot be reached"))
            checkly.up()
            recovers()
            checkly.set_faults([{"kind": "status", "status": 401}])
            daemon.until(unwell(daemon, "CHECKLY_API_KEY"))
            checkly.set_faults([])
            recovers()
            move_to("0001")
            daemon.until(unwell(daemon, "checkly-etl migrate"))
            move_to("9999")
            daemon.until(unwell(daemon, "newer than this program"))
            move_to(revision)
            recovers()
        assert daemon.stop()[0] == 0
        assert rows(database, "SELECT command FROM etl_runs WHERE outcome IS NULL") == []


def test_a_daemon_outlives_a_warehouse_that_is_gone_also_at_its_start(
    own_postgres: OwnPostgres, tmp_path: Path
) -> None:
    with Checkly() as checkly, Installation(tmp_path, own_postgres.url, checkly) as place:
        put_some(checkly, [1])
        own_postgres.stop()
        daemon = place.daemon()
        try:
            with always_live(daemon):
                daemon.until(unwell(daemon, "refused"))
                own_postgres.start()
                daemon.until(lambda: uuid(1) in place.known() and well(daemon))
                own_postgres.stop()
                # In the middle of a pass it is waited for, half a minute long, before the pass says why it failed.
                daemon.until(unwell(daemon, "refused"), timeout=90)
        finally:
            own_postgres.start()
        put_some(checkly, [2])
        daemon.until(lambda: uuid(2) in place.known() and well(daemon))
        code, took = daemon.stop()
        assert (code, took < 3 + SLACK) == (0, True)
        with closing(Database(own_postgres.url)) as database:
            assert rows(database, "SELECT command FROM etl_runs WHERE outcome IS NULL") == []


def test_a_daemon_whose_warehouse_is_gone_hears_a_signal(own_postgres: OwnPostgres, tmp_path: Path) -> None:
    with Checkly() as checkly, Installation(tmp_path, own_postgres.url, checkly) as place:
        daemon = place.daemon()
        daemon.until(lambda: daemon.passes() >= 1)
        own_postgres.stop()
        try:
            daemon.until(lambda: not well(daemon))
            code, took = daemon.stop()
            assert code == 0
            assert took < 3 + 3 + SLACK  # STOPPED_RETRY_SECONDS or the hard stop behind the grace
        finally:
            own_postgres.start()


# --- for weeks ----------------------------------------------------------------------------------------------------

# A process of its own that makes passes as the daemon does, scraped as Prometheus does; argv: config.yaml, passes.
MANY_PASSES = """
import json, os, sys, threading, time
from pathlib import Path

import psycopg

from etl import config, inbox, schema
from etl.daemon import State, run_pass
from etl.daemon.metrics import exposition
from etl.database import Database
from etl.pipeline import Etl

settings = config.load(Path(sys.argv[1]), dict(os.environ))
url = settings.warehouse.url.reveal()
etl = Etl(settings, Database(url, connections=settings.export.concurrency + 4))
state = State(
    loss_warning=settings.observe.loss_warning,
    accounts=[account.id for account in settings.require_accounts()],
    inboxes=[inbox.name_of(source) for source in settings.inbox],
)
scrape = exposition(state, version="0", schema=schema.HEAD)


def connections():
    if url.startswith("sqlite"):
        return 0
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchone()[0]


def measure(number):
    for _ in range(50):  # what is closed takes a moment to be gone
        found = {
            "pass": number,
            "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "connections": connections(),
        }
        if found["threads"] == 1 and not found["connections"]:
            break
        time.sleep(0.02)
    print(json.dumps(found), flush=True)


passes, began, failed = int(sys.argv[2]), time.monotonic(), 0
for number in range(1, passes + 1):
    outcome = run_pass(etl, state)
    failed += outcome.word == "failed"
    scrape("")
    if number in (1, 10, 50, passes // 2, passes):
        measure(number)
messages = sum(count.messages for count in state.snapshot().inboxes.values())
print(json.dumps({"seconds": time.monotonic() - began, "failed": failed, "messages": messages}))
"""


def many_passes(place: Installation, passes: int, *, producers: Sequence[Callable[[str], None]]) -> list[Json]:
    """What so many passes, of which some bring something, leave in a process, now and then; and a summary."""
    env = {**os.environ, **place.workers.env, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MANY_PASSES, str(place.config()), str(passes)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    over = threading.Event()

    def produce() -> None:
        for number in itertools.cycle(range(1, 21)):
            for send in producers:
                send(as_link(uuid(number)))
            if over.wait(0.2):
                return

    producing = threading.Thread(target=produce, daemon=True)
    producing.start()
    try:
        out, err = process.communicate(timeout=900)
    finally:
        process.kill()
        over.set()
        producing.join()
    assert process.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines()]


@needs_brokers
def test_many_passes_leave_a_daemon_as_it_was(
    engine_name: str, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    with an_installation(tmp_path, new_warehouse(engine_name)) as place:
        put_some(place.checkly, range(1, 21))
        assert place.redis is not None
        assert place.rabbitmq is not None
        redis_, amqp = place.redis.url, place.rabbitmq.url
        amqp_declare(amqp, QUEUE)
        file = File(place.file, random.Random(1))
        *measured, summary = many_passes(
            place,
            PASSES,
            producers=[
                file.append,
                lambda message: redis_push(redis_, QUEUE, message),
                lambda message: amqp_publish(amqp, QUEUE, message),
            ],
        )
    first, warm, last = measured[0], measured[1], measured[-1]
    assert summary["failed"] == 0
    assert summary["messages"] > 10
    for name in ("threads", "files", "connections"):
        assert last[name] <= first[name], measured
    assert last["rss"] - warm["rss"] < 10, measured


# --- two of them --------------------------------------------------------------------------------------------------


@needs_brokers
def test_two_daemons_on_one_warehouse_and_the_same_inboxes_share_the_work(
    new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    """Each message is handled once, each test session fetched and saved once."""
    url = new_warehouse("postgresql")
    listed, told = range(1, 31), range(101, 191)
    with an_installation(tmp_path, url, export={"settle": []}) as place, closing(Database(url)) as database:
        checkly = place.checkly
        assert place.redis is not None
        assert place.rabbitmq is not None
        redis_, amqp = place.redis.url, place.rabbitmq.url
        amqp_declare(amqp, QUEUE)
        put_some(checkly, told, listed=False)
        checkly.set_faults([{"kind": "delay", "seconds": 0.05}])
        daemons = [place.daemon(), place.daemon()]
        file = File(place.file, random.Random(1))
        sends: list[Callable[[str], None]] = [
            file.append,
            lambda message: redis_push(redis_, QUEUE, message),
            lambda message: amqp_publish(amqp, QUEUE, message),
        ]
        for count, number in enumerate(told):
            sends[count % 3](as_bare(uuid(number)))
            if count % 3 == 0:
                put_some(checkly, [listed[count // 3]])
        wanted = {uuid(number) for number in (*listed, *told)}
        daemons[0].until(lambda: place.known() == wanted and not place.left())
        shares = [daemon.metric("checkly_etl_test_sessions_saved_total") for daemon in daemons]
        messages = [daemon.metric("checkly_etl_inbox_messages_total") for daemon in daemons]
        for daemon in daemons:
            assert daemon.stop()[0] == 0, daemon.worker.err
        assert sum(shares) == len(wanted), shares
        assert min(shares) > 0, shares
        # A line of a file that came in two pieces may count twice.
        assert len(told) <= sum(messages) <= len(told) + 10, messages
        counted = "SELECT sum(test_sessions_saved) AS saved, sum(test_sessions_unchanged) AS unchanged FROM etl_runs"
        assert rows(database, counted) == [{"saved": len(wanted), "unchanged": 0}]
        fetched = Counter(path for path in checkly.paths if path.startswith("/v1/test-sessions/"))
        assert set(fetched.values()) == {1}, fetched.most_common(3)
        assert scalar(database, "SELECT count(*) FROM etl_queue") == 0
        assert scalar(database, "SELECT count(*) FROM etl_inboxes WHERE reader_token IS NOT NULL") == 0

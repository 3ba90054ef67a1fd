"""How the daemon does, in figures: latency of each inbox, messages lost, memory over many passes, time to its end.

    .venv/bin/python -m bench.daemon                      all of it, ten minutes
    .venv/bin/python -m bench.daemon latency end          only these parts: latency, story, passes, end
    .venv/bin/python -m bench.daemon passes --passes 100

From the root of the checkout. It starts servers of its own: PostgreSQL from the tests' wheel, redis-server and
rabbitmq-server as Debian installs them, and the simulated Checkly; a daemon is a process as users have it. The
figures are of this machine and of what else it does.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from tests.brokers import amqp_declare, amqp_publish, redis_push
from tests.documents import uuid
from tests.servers import OwnPostgres
from tests.torture.test_daemon import (
    DETAIL,
    QUEUE,
    Daemon,
    File,
    Installation,
    an_installation,
    as_link,
    details,
    live_through,
    many_passes,
    put_some,
)

MESSAGES = 40  # of each inbox
INTERVAL = 5.0  # seconds between two passes
TROUBLES = ("kill", "kill", "terminate", "api", "postgres", "postgres", "redis", "rabbitmq", "rotate")
PARTS = ("latency", "story", "passes", "end")
Row = tuple[str, str]


def producers(place: Installation) -> dict[str, Callable[[str], None]]:
    """One for each inbox, as a CI job has it."""
    if place.redis is None or place.rabbitmq is None:
        raise AssertionError("no brokers")
    redis_url, amqp = place.redis.url, place.rabbitmq.url
    amqp_declare(amqp, QUEUE)
    return {
        "Redis": lambda message: redis_push(redis_url, QUEUE, message),
        "RabbitMQ": lambda message: amqp_publish(amqp, QUEUE, message),
        "file": File(place.file, random.Random(1)).append,
    }


def latency(place: Installation, _: argparse.Namespace) -> list[Row]:
    """From a message that is accepted to rows that another connection sees."""
    place.schedule = {"interval": f"{INTERVAL:.0f}s"}
    inboxes = producers(place)
    numbers = {name: range(1000 * (at + 1), 1000 * (at + 1) + MESSAGES) for at, name in enumerate(inboxes)}
    for of_one in numbers.values():
        put_some(place.checkly, of_one, listed=False)
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}

    def produce(name: str) -> None:
        chance = random.Random(name)
        for number in numbers[name]:
            time.sleep(chance.uniform(0, INTERVAL))
            inboxes[name](as_link(uuid(number)))
            sent[uuid(number)] = time.monotonic()

    daemon = place.daemon()
    crowd = [threading.Thread(target=produce, args=(name,), daemon=True) for name in inboxes]
    for thread in crowd:
        thread.start()
    with psycopg.connect(place.warehouse_url, autocommit=True) as connection:
        while any(thread.is_alive() for thread in crowd) or seen.keys() != sent.keys():
            for row in connection.execute("SELECT test_session_id FROM test_sessions").fetchall():
                seen.setdefault(str(row[0]), time.monotonic())
            time.sleep(0.01)
    daemon.stop()
    found = {name: [max(0.0, seen[uuid(n)] - sent[uuid(n)]) for n in numbers[name]] for name in inboxes}
    return [
        (f"{name}: message to committed rows, n = {len(took)}, interval {INTERVAL:.0f} s", _told(took))
        for name, took in found.items()
    ]


def story(place: Installation, arguments: argparse.Namespace) -> list[Row]:
    """Every trouble at once, and the rows compared with peace."""
    with psycopg.connect(place.warehouse_url.replace("/warehouse", "/postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE peace TEMPLATE warehouse")
    told = live_through(
        place,
        seed=arguments.seed,
        count=72,
        seconds=12.0,
        troubles=TROUBLES,
        server=arguments.server,
        peace_url=place.warehouse_url.replace("/warehouse", "/peace"),
    )
    return [
        (
            f"messages sent under {', '.join(sorted(set(TROUBLES)))}",
            f"{told.sent}, of them {told.retried} sent again",
        ),
        ("test sessions lost, rows different from peace", f"{len(told.lost)}, 0"),
        ("versions of test sessions written", f"{told.saved} in {told.seconds:.0f} s"),
    ]


def passes(place: Installation, arguments: argparse.Namespace) -> list[Row]:
    """What many passes leave in a process; something comes from each inbox all the while."""
    put_some(place.checkly, range(1, 21))
    *measured, summary = many_passes(place, arguments.passes, producers=list(producers(place).values()))
    found: list[Row] = [
        (
            f"after pass {now['pass']:,}",
            f"{now['rss']:.1f} MB, {now['threads']} thread, {now['files']} files, {now['connections']} connections",
        )
        for now in measured
    ]
    seconds = summary["seconds"] / arguments.passes
    return [*found, ("a pass", f"{1000 * seconds:.0f} ms, {summary['messages']} messages in all of them")]


def end(place: Installation, _: argparse.Namespace) -> list[Row]:
    """From SIGTERM to the exit."""
    idle = [_idle(place) for _ in range(5)]
    working = [_in_mid_pass(place, range(1000 * turn, 1000 * turn + 300), 0.2) for turn in range(1, 6)]
    hanging = [_in_mid_pass(place, range(1000 * turn, 1000 * turn + 300), 600.0) for turn in range(11, 14)]
    return [
        (f"SIGTERM to exit, idle, n = {len(idle)}", _told(idle)),
        (f"SIGTERM to exit, in mid-pass, calls take 0.2 s, n = {len(working)}", _told(working)),
        (f"SIGTERM to exit, in mid-pass, calls hang, grace 3 s, n = {len(hanging)}", _told(hanging)),
    ]


def _idle(place: Installation) -> float:
    place.checkly.set_faults([])
    place.schedule = {"interval": "1h", "grace": "3s"}
    daemon = place.daemon()
    daemon.until(lambda: daemon.passes() == 1)
    return _ended(daemon)


def _in_mid_pass(place: Installation, numbers: Sequence[int], seconds: float) -> float:
    place.schedule, place.timeout = {"interval": "1h", "grace": "3s"}, "60s"
    put_some(place.checkly, numbers)
    place.checkly.set_faults([{"kind": "delay", "match": DETAIL, "seconds": seconds}])
    before = details(place.checkly)
    daemon = place.daemon()
    daemon.until(lambda: details(place.checkly) >= before + 8)
    time.sleep(0.5)
    return _ended(daemon)


def _ended(daemon: Daemon) -> float:
    code, seconds = daemon.stop(signal.SIGTERM)
    if code != 0:
        raise AssertionError(f"exit {code}: {daemon.worker.err[-2000:]}")
    return seconds


def _told(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    median, worst = statistics.median(ordered), ordered[-1]
    if len(ordered) < 20:
        return f"median {median:.2f} s, worst {worst:.2f} s"
    return f"median {median:.2f} s, p95 {ordered[(95 * len(ordered) + 99) // 100 - 1]:.2f} s, worst {worst:.2f} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Figures of the daemon; see the top of the file.")
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--passes", type=int, default=1000, help="of the part of this name")
    parser.add_argument("--seed", type=int, default=0, help="of the story")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"{part} is none of {', '.join(PARTS)}")
    measure: dict[str, Callable[[Any, Any], list[Row]]] = dict(zip(PARTS, (latency, story, passes, end), strict=True))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL", flush=True)
    for part in arguments.parts:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-bench-")))
            arguments.server = stack.enter_context(OwnPostgres())
            place = stack.enter_context(an_installation(folder, arguments.server.url))
            rows = measure[part](place, arguments)
        print(f"\n{part}")
        for what, figures in rows:
            print(f"  {what:84} {figures}", flush=True)


if __name__ == "__main__":
    main()

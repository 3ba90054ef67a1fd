"""The tests' own servers: what other tests build on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import pytest
import redis

from tests.brokers import (
    OwnRabbitMQ,
    OwnRedis,
    amqp_declare,
    amqp_publish,
    redis_add,
    redis_push,
)

TEXTS = ["plain", "two\nlines\n", " -x \"q\" 'q' %s $HOME \\n", "ünï ☃", "", "long " * 60_000]

needs_redis = pytest.mark.skipif(not OwnRedis.is_here(), reason="no redis-server")
needs_rabbitmq = pytest.mark.skipif(not OwnRabbitMQ.is_here(), reason="no rabbitmq-server")


def _popped(url: str, key: str) -> list[str]:
    with closing(redis.Redis.from_url(url)) as client:
        found: Any = client.lpop(key, 100)
        return [item.decode() for item in found]


def _got(url: str, queue: str) -> list[str]:
    found: list[str] = []
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        while True:
            method, _, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append((body or b"").decode())


@needs_redis
def test_a_redis_keeps_what_it_was_given_over_restart_and_kill() -> None:
    with OwnRedis() as server:
        redis_push(server.url, "queue", "one")
        server.restart(down=0.1)
        redis_push(server.url, "queue", "two")
        server.kill()
        server.start()
        assert _popped(server.url, "queue") == ["one", "two"]


@needs_redis
@pytest.mark.parametrize("password", ["secret", "p w/x:@%?"])
def test_a_redis_with_a_password_lets_nobody_in_without_it(password: str) -> None:
    with OwnRedis(password) as server:
        redis_push(server.url, "queue", "one")
        with pytest.raises(AssertionError, match="NOAUTH"):
            redis_push(f"redis://127.0.0.1:{server.port}/0", "queue", "two")
        assert _popped(server.url, "queue") == ["one"]


@needs_redis
def test_a_redis_leaves_no_process_and_no_file_behind() -> None:
    with OwnRedis() as server:
        assert len(server.processes()) == 1
    assert not server.processes()
    assert not server.folder.exists()


@needs_rabbitmq
def test_a_rabbitmq_keeps_what_is_durable_over_a_restart_and_leaves_nothing_behind() -> None:
    others = _epmds()
    with OwnRabbitMQ() as server:
        amqp_declare(server.url, "queue")
        amqp_publish(server.url, "queue", "one")
        server.restart()
        amqp_publish(server.url, "queue", "two")
        assert _got(server.url, "queue") == ["one", "two"]
        assert len(server.processes()) > 2
        server.kill()
    assert not server.processes()
    assert not server.folder.exists()
    assert _epmds() == others


def test_redis_cli_pushes_any_text(redis_url: str, redis_queue: str) -> None:
    for text in TEXTS:
        redis_push(redis_url, redis_queue, text)
    assert _popped(redis_url, redis_queue) == TEXTS


def test_redis_cli_adds_entries_to_a_stream(redis_url: str, redis_queue: str) -> None:
    for text in TEXTS:
        redis_add(redis_url, redis_queue, "name", "value", "text", text)
    with closing(redis.Redis.from_url(redis_url)) as client:
        found: Any = client.xrange(redis_queue)
    assert [fields for _, fields in found] == [{b"name": b"value", b"text": text.encode()} for text in TEXTS]


def test_a_refused_command_is_not_taken_for_a_push(redis_url: str, redis_queue: str) -> None:
    redis_add(redis_url, redis_queue, "name", "value")
    with pytest.raises(AssertionError, match="WRONGTYPE"):
        redis_push(redis_url, redis_queue, "text")


def test_amqp_publish_publishes_any_text(amqp_url: str, amqp_queue: str) -> None:
    amqp_declare(amqp_url, amqp_queue)
    for text in TEXTS:
        amqp_publish(amqp_url, amqp_queue, text)
    assert _got(amqp_url, amqp_queue) == TEXTS


def _epmds() -> set[int]:
    """Ids of the name servers of all Erlangs on the machine."""
    names = Path("/proc").glob("[0-9]*/comm")
    return {int(path.parent.name) for path in names if path.read_text().strip() == "epmd"}

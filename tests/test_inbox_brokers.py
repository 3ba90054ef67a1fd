"""Real brokers as inboxes: what a CI job puts in comes out in order, and again until it is acknowledged."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
import redis

from etl.config import InboxQueue, SecretUrl
from etl.errors import InboxUnavailable
from etl.inbox import Batch, Source, find_ids, name_of, open_source
from tests.brokers import OwnRabbitMQ, OwnRedis, amqp_declare, amqp_publish, redis_add, redis_push
from tests.proxy import Proxy
from tests.servers import free_port

A, B, C, D, E = (f"0{letter}0a0a0a-1111-4222-8333-aaaaaaaaaaaa" for letter in "abcde")
OTHER = "0c0c0c0c-2222-4222-8333-cccccccccccc"
LINK = "https://app.checklyhq.com/accounts/{}/test-sessions/{}"
PASSWORD = "p w/x:@%?"

# What CI has at hand, and the ids in it.
TEXTS = {
    A: (A,),
    LINK.format(OTHER, B): (B,),
    f"Running 2 checks in eu-central-1.\n\n  \x1b[37mTest session ID:\x1b[39m {C}\n  trace {OTHER}\n": (C,),
    json.dumps({"testSessionId": D, "checks": [{"id": OTHER}]}, indent=2): (D,),
    json.dumps({"data": [{"id": A, "name": "x"}, {"id": E, "name": "y"}]}, indent=2): (A, E),
    f"nothing here but {OTHER}": (),
    "": (),
}
Open = Callable[..., Source]


@pytest.fixture
def opened() -> Iterator[Open]:
    """A source, as a new process opens it."""
    sources: list[Source] = []

    def make(url: str, queue: str) -> Source:
        sources.append(open_source(InboxQueue(SecretUrl(url), queue)))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def received(source: Source) -> Batch:
    batch = source.receive(None)
    assert batch is not None
    return batch


def texts(batch: Batch) -> list[str]:
    return [message.text for message in batch.messages]


def read(source: Source) -> list[str]:
    """All that there is, acknowledged."""
    found: list[str] = []
    while (batch := source.receive(None)) is not None:
        found += texts(batch)
        source.acknowledge(batch)
    return found


def ids(found: list[str]) -> list[tuple[str, ...]]:
    return [find_ids(text) for text in found]


def behind(proxy: Proxy, url: str) -> str:
    """The same URL by way of the proxy."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{login}{'@' * bool(login)}127.0.0.1:{proxy.port}").geturl()


@contextmanager
def proxied(url: str) -> Iterator[tuple[Proxy, str]]:
    parts = urlsplit(url)
    with Proxy(str(parts.hostname), int(parts.port or 0)) as proxy:
        yield proxy, behind(proxy, url)


@contextmanager
def deaf() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with closing(redis.Redis.from_url(redis_url, decode_responses=True)) as connected:
        yield connected


@pytest.fixture
def channel(amqp_url: str) -> Iterator[Any]:
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        yield connection.channel()


# --- Redis: a list ----------------------------------------------------------------------------------------------


def test_what_is_pushed_comes_out_in_order_and_is_gone_when_it_is_acknowledged(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    for text in TEXTS:
        redis_push(redis_url, redis_queue, text)
    found = read(opened(redis_url, redis_queue))
    assert found == list(TEXTS)
    assert ids(found) == list(TEXTS.values())
    assert client.exists(redis_queue, f"{redis_queue}:checkly-etl") == 0
    redis_push(redis_url, redis_queue, A)
    assert read(opened(redis_url, redis_queue)) == [A]


def test_what_is_not_acknowledged_waits_in_the_processing_list_and_comes_first(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    for text in (A, B):
        redis_push(redis_url, redis_queue, text)
    assert texts(received(opened(redis_url, redis_queue))) == [A, B]
    redis_push(redis_url, redis_queue, C)
    assert client.lrange(f"{redis_queue}:checkly-etl", 0, -1) == [A, B]
    assert client.lrange(redis_queue, 0, -1) == [C]

    for _ in range(2):  # as often as its readers die
        assert texts(received(opened(redis_url, redis_queue))) == [A, B]
    assert read(opened(redis_url, redis_queue)) == [A, B, C]
    assert client.exists(redis_queue, f"{redis_queue}:checkly-etl") == 0


def test_what_a_dead_reader_took_is_found_when_the_list_is_gone(
    redis_url: str, redis_queue: str, opened: Open
) -> None:
    redis_push(redis_url, redis_queue, A)
    received(opened(redis_url, redis_queue))
    assert read(opened(redis_url, redis_queue)) == [A]


def test_a_text_that_is_pushed_twice_is_two_messages(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    for text in (A, B, A):
        redis_push(redis_url, redis_queue, text)
    source = opened(redis_url, redis_queue)
    batch = received(source)
    assert texts(batch) == [A, B, A]
    redis_push(redis_url, redis_queue, A)
    client.rpush(f"{redis_queue}:checkly-etl", A)  # as if taken since
    source.acknowledge(batch)
    assert client.lrange(f"{redis_queue}:checkly-etl", 0, -1) == [A]
    assert read(source) == [A, A]


def test_a_message_of_any_bytes_is_a_message(redis_url: str, redis_queue: str, client: Any, opened: Open) -> None:
    client.rpush(
        redis_queue, b"\xff\x00\xfe", f"\ufeff{A}".encode("utf-16-le"), b"\x80 " + LINK.format(OTHER, B).encode()
    )
    assert ids(read(opened(redis_url, redis_queue))) == [(), (A,), (B,)]
    assert client.exists(f"{redis_queue}:checkly-etl") == 0


@pytest.mark.parametrize("kind", ["list", "stream"])
def test_any_number_of_messages_comes_in_batches(
    redis_url: str, redis_queue: str, client: Any, opened: Open, kind: str
) -> None:
    wanted = [f"message {number}" for number in range(1203)]
    with client.pipeline() as pipeline:
        for text in wanted:
            _ = pipeline.rpush(redis_queue, text) if kind == "list" else pipeline.xadd(redis_queue, {"text": text})
        pipeline.execute()
    source = opened(redis_url, redis_queue)
    batch = received(source)
    assert len(batch.messages) == 500
    again = opened(redis_url, redis_queue)
    assert texts(received(again)) == texts(batch), "not acknowledged yet"
    source.acknowledge(batch)
    assert [text.removeprefix("text: ") for text in [*texts(batch), *read(source)]] == wanted


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda client, key: client.hset(key, "field", A), "holds a hash"),
        (lambda client, key: client.set(key, A), "holds a string"),
        (lambda client, key: client.sadd(key, A), "holds a set"),
        (lambda client, key: client.set(f"{key}:checkly-etl", A), "WRONGTYPE"),
    ],
)
def test_a_key_of_another_type_is_reported_and_left_alone(
    redis_url: str, redis_queue: str, client: Any, opened: Open, make: Callable[..., None], said: str
) -> None:
    make(client, redis_queue)
    with pytest.raises(InboxUnavailable, match=said):
        opened(redis_url, redis_queue).receive(None)
    assert client.exists(redis_queue, f"{redis_queue}:checkly-etl") == 1


def test_a_key_that_is_missing_is_an_empty_inbox_and_stays_missing(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    source = opened(redis_url, redis_queue)
    assert source.receive(None) is None
    assert "nothing has been pushed yet" in source.examine()
    assert client.keys(f"{redis_queue}*") == []


def test_to_examine_a_redis_takes_nothing(redis_url: str, redis_queue: str, client: Any, opened: Open) -> None:
    redis_push(redis_url, redis_queue, A)
    redis_push(redis_url, redis_queue, B)
    assert opened(redis_url, redis_queue).examine() == "a list, 2 messages wait"
    received(opened(redis_url, redis_queue))
    assert opened(redis_url, redis_queue).examine() == "a list, 2 messages wait"
    redis_add(redis_url, f"{redis_queue}-stream", "id", A)
    assert opened(redis_url, f"{redis_queue}-stream").examine() == "a stream of 1 entries"
    assert client.xinfo_groups(f"{redis_queue}-stream") == []


# --- Redis: a stream --------------------------------------------------------------------------------------------


def test_entries_come_out_in_order_and_stay_in_the_stream(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    for text in TEXTS:
        redis_add(redis_url, redis_queue, "text", text)
    source = opened(redis_url, redis_queue)
    assert ids(read(source)) == list(TEXTS.values())
    redis_add(redis_url, redis_queue, "text", E)
    assert ids(read(source)) == [(E,)]
    redis_add(redis_url, redis_queue, "text", A)
    assert ids(read(opened(redis_url, redis_queue))) == [(A,)], "the group is made once"
    assert client.xlen(redis_queue) == len(TEXTS) + 2
    assert client.xpending(redis_queue, "checkly-etl")["pending"] == 0


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (("anything", A), (A,)),
        (("test_session_id", A), (A,)),
        (("test_session_id", A, "trace_id", OTHER), (A,)),
        (("trace_id", OTHER, "testSessionId", A), (A,)),
        (("pipeline", "4711", "id", A, "branch", "main"), (A,)),
        (("branch", "main", "output", f"done\nTest session ID: {A}\n", "trace", OTHER), (A,)),
        (("link", LINK.format(OTHER, A), "account_id", OTHER), (A,)),
        (("report", json.dumps({"data": [{"id": A}, {"id": B}]}, indent=2), "branch", "main"), (A, B)),
        (("id", A, "trace", OTHER), ()),  # which of them?
        (("branch", "main"), ()),
    ],
)
def test_the_fields_of_an_entry_may_have_any_names(
    redis_url: str, redis_queue: str, opened: Open, fields: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    redis_add(redis_url, redis_queue, *fields)
    assert ids(read(opened(redis_url, redis_queue))) == [wanted]


def test_pending_entries_of_a_dead_reader_come_first(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    for text in (A, B):
        redis_add(redis_url, redis_queue, "id", text)
    received(opened(redis_url, redis_queue))
    redis_add(redis_url, redis_queue, "id", C)
    assert client.xpending(redis_queue, "checkly-etl")["pending"] == 2
    assert ids(texts(received(opened(redis_url, redis_queue)))) == [(A,), (B,)]
    assert ids(read(opened(redis_url, redis_queue))) == [(A,), (B,), (C,)]
    assert client.xpending(redis_queue, "checkly-etl")["pending"] == 0


def test_an_entry_that_was_deleted_while_it_was_pending_holds_nobody_up(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    for text in (A, B, C):
        redis_add(redis_url, redis_queue, "id", text)
    received(opened(redis_url, redis_queue))
    client.xdel(redis_queue, client.xrange(redis_queue)[1][0])
    assert ids(read(opened(redis_url, redis_queue))) == [(A,), (), (C,)]
    assert client.xpending(redis_queue, "checkly-etl")["pending"] == 0
    client.xtrim(redis_queue, maxlen=0)
    redis_add(redis_url, redis_queue, "id", D)
    assert ids(read(opened(redis_url, redis_queue))) == [(D,)]


def test_other_groups_of_a_stream_miss_nothing(redis_url: str, redis_queue: str, client: Any, opened: Open) -> None:
    redis_add(redis_url, redis_queue, "id", A)
    client.xgroup_create(redis_queue, "others", id="0")
    assert ids(read(opened(redis_url, redis_queue))) == [(A,)]
    assert len(client.xreadgroup("others", "one", {redis_queue: ">"})) == 1


def test_a_stream_that_was_deleted_and_made_again_is_read_from_its_start(
    redis_url: str, redis_queue: str, client: Any, opened: Open
) -> None:
    redis_add(redis_url, redis_queue, "id", A)
    assert ids(read(opened(redis_url, redis_queue))) == [(A,)]
    client.delete(redis_queue)
    redis_add(redis_url, redis_queue, "id", B)
    assert ids(read(opened(redis_url, redis_queue))) == [(B,)]


# --- Redis: trouble ---------------------------------------------------------------------------------------------

needs_redis = pytest.mark.skipif(not OwnRedis.is_here(), reason="no redis-server")


def refusal(source: Source) -> str:
    """What is said of it. Each way of using it says so."""
    said = []
    for use in (lambda: source.receive(None), source.examine):
        with pytest.raises(InboxUnavailable) as caught:
            use()
        said.append(str(caught.value))
        source.close()
    assert said[0].startswith(f"inbox {source.name}: ")
    assert len(said[0]) > len(f"inbox {source.name}: ") + 5
    return said[0]


@needs_redis
def test_a_redis_with_a_password_wants_it_and_it_is_told_to_nobody(opened: Open) -> None:
    with OwnRedis(PASSWORD) as server:
        redis_push(server.url, "queue", A)
        for login in ("default:wrong-password@", ":wrong-password@", ""):
            said = refusal(opened(f"redis://{login}127.0.0.1:{server.port}/0", "queue"))
            assert "Redis refuses user or password" in said
            assert "wrong-password" not in said
        source = opened(server.url, "queue")
        assert "%" not in source.name
        assert "***@127.0.0.1" in source.name
        assert read(source) == [A]


@needs_redis
def test_a_redis_that_ends_between_receiving_and_acknowledging_loses_nothing(opened: Open) -> None:
    with OwnRedis() as server:
        for text in (A, B):
            redis_push(server.url, "queue", text)
        redis_add(server.url, "stream", "id", A)
        sources = [opened(server.url, queue) for queue in ("queue", "stream")]
        batches = [received(source) for source in sources]
        server.kill()
        for source, batch in zip(sources, batches, strict=True):
            with pytest.raises(InboxUnavailable):
                source.acknowledge(batch)
            refusal(source)
        server.start()
        assert read(opened(server.url, "queue")) == [A, B]
        assert ids(read(opened(server.url, "stream"))) == [(A,)]


@needs_redis
def test_a_redis_that_takes_no_writes_is_reported_and_loses_nothing(opened: Open) -> None:
    with OwnRedis() as server:
        redis_push(server.url, "queue", A)
        with closing(redis.Redis.from_url(server.url)) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(InboxUnavailable, match="not allowed when used memory"):
                opened(server.url, "queue").receive(None)
            client.config_set("maxmemory", "0")
        assert read(opened(server.url, "queue")) == [A]


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:{}/0", "redis://no-such-host.invalid:{}/0", "redis://127.0.0.1:x/0"]
)
def test_a_redis_that_cannot_be_reached_is_reported(opened: Open, url: str) -> None:
    with pytest.raises(InboxUnavailable):
        opened(url.format(free_port()), "queue").receive(None)


def test_a_redis_that_never_answers_is_not_waited_for_for_ever(
    opened: Open, monkeypatch: pytest.MonkeyPatch, redis_url: str, redis_queue: str
) -> None:
    monkeypatch.setattr("etl.inbox.redis.ANSWER_SECONDS", 0.5)
    with deaf() as port:
        refusal(opened(f"redis://127.0.0.1:{port}/0", "queue"))
    redis_push(redis_url, redis_queue, A)
    with proxied(redis_url) as (proxy, url):
        source = opened(url, redis_queue)
        batch = received(source)
        proxy.stall = True
        with pytest.raises(InboxUnavailable):
            source.acknowledge(batch)
        source.close()
        proxy.stall = False
    assert read(opened(redis_url, redis_queue)) == [A]


# --- RabbitMQ ---------------------------------------------------------------------------------------------------


def test_what_is_published_comes_out_in_order_and_is_gone_when_it_is_acknowledged(
    amqp_url: str, amqp_queue: str, opened: Open
) -> None:
    amqp_declare(amqp_url, amqp_queue)
    for text in TEXTS:
        amqp_publish(amqp_url, amqp_queue, text)
    found = read(opened(amqp_url, amqp_queue))
    assert found == list(TEXTS)
    assert ids(found) == list(TEXTS.values())
    assert read(opened(amqp_url, amqp_queue)) == []


def test_a_queue_that_does_not_exist_is_made_and_survives_the_broker(
    amqp_url: str, amqp_queue: str, channel: Any, opened: Open
) -> None:
    source = opened(amqp_url, amqp_queue)
    assert "does not exist yet" in source.examine()
    with pytest.raises(Exception, match="NOT_FOUND"):
        channel.connection.channel().queue_declare(amqp_queue, passive=True)
    assert opened(amqp_url, amqp_queue).receive(None) is None
    channel.queue_declare(amqp_queue, durable=True)  # refused if it is not durable
    amqp_publish(amqp_url, amqp_queue, A)
    assert read(opened(amqp_url, amqp_queue)) == [A]


@pytest.mark.parametrize(
    ("durable", "arguments"),
    [(True, {"x-max-length": 3}), (True, {"x-queue-type": "quorum"}), (False, {"x-message-ttl": 3_600_000})],
)
def test_a_queue_with_arguments_of_its_own_is_used_as_it_is(
    amqp_url: str, amqp_queue: str, channel: Any, opened: Open, durable: bool, arguments: dict[str, Any]
) -> None:
    channel.queue_declare(amqp_queue, durable=durable, arguments=arguments)
    amqp_publish(amqp_url, amqp_queue, A)
    assert opened(amqp_url, amqp_queue).examine() == "a queue, 1 messages wait"
    assert read(opened(amqp_url, amqp_queue)) == [A]
    channel.queue_declare(amqp_queue, durable=durable, arguments=arguments)


def test_what_is_not_acknowledged_comes_again_when_the_connection_is_closed(
    amqp_url: str, amqp_queue: str, opened: Open
) -> None:
    amqp_declare(amqp_url, amqp_queue)
    for text in (A, B):
        amqp_publish(amqp_url, amqp_queue, text)
    for _ in range(2):
        source = opened(amqp_url, amqp_queue)
        assert texts(received(source)) == [A, B]
        assert opened(amqp_url, amqp_queue).receive(None) is None, "as long as it is open"
        source.close()
    amqp_publish(amqp_url, amqp_queue, C)
    assert read(opened(amqp_url, amqp_queue)) == [A, B, C]


def test_any_number_of_messages_is_acknowledged_batch_by_batch(
    amqp_url: str, amqp_queue: str, channel: Any, opened: Open
) -> None:
    amqp_declare(amqp_url, amqp_queue)
    wanted = [f"message {number}" for number in range(1203)]
    for text in wanted:
        channel.basic_publish("", amqp_queue, text.encode())
    channel.queue_declare(amqp_queue, passive=True)  # answered when all before has been done
    source = opened(amqp_url, amqp_queue)
    first = received(source)
    assert texts(first) == wanted[:500]
    source.acknowledge(first)
    assert texts(received(source)) == wanted[500:1000]
    source.close()
    assert read(opened(amqp_url, amqp_queue)) == wanted[500:]


def test_a_published_message_of_any_bytes_is_a_message(
    amqp_url: str, amqp_queue: str, channel: Any, opened: Open
) -> None:
    amqp_declare(amqp_url, amqp_queue)
    for body in (b"", b"\xff\x00\xfe", f"\ufeff{A}".encode("utf-16-le")):
        channel.basic_publish("", amqp_queue, body)
    channel.queue_declare(amqp_queue, passive=True)  # answered when all before has been done
    assert ids(read(opened(amqp_url, amqp_queue))) == [(), (), (A,)]


def test_a_connection_that_is_cut_before_the_acknowledgement_brings_the_message_again(
    amqp_url: str, amqp_queue: str, opened: Open
) -> None:
    amqp_declare(amqp_url, amqp_queue)
    amqp_publish(amqp_url, amqp_queue, A)
    with proxied(amqp_url) as (proxy, url):
        source = opened(url, amqp_queue)
        batch = received(source)
        proxy.cut()
        with suppress(InboxUnavailable):  # it may not know yet: an acknowledgement is not answered
            source.acknowledge(batch)
        source.close()
        # The next connection has delivery tags of its own: that of the first one means nothing there.
        assert texts(received(source)) == [A]
        source.close()
    assert read(opened(amqp_url, amqp_queue)) == [A]


def test_a_queue_that_is_somebodys_own_is_reported(
    amqp_url: str, amqp_queue: str, channel: Any, opened: Open
) -> None:
    channel.queue_declare(amqp_queue, exclusive=True)
    assert "405 RESOURCE_LOCKED" in refusal(opened(amqp_url, amqp_queue))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"login": "guest:wrong-password"}, "user or password"),
        ({"login": "nobody:wrong-password"}, "user or password"),
        ({"path": "/no-such-host"}, "virtual host"),
    ],
)
def test_a_rabbitmq_that_refuses_is_reported_without_the_password(
    amqp_url: str, amqp_queue: str, opened: Open, change: dict[str, str], said: str
) -> None:
    parts = urlsplit(amqp_url)
    login, _, host = parts.netloc.rpartition("@")
    url = parts._replace(netloc=f"{change.get('login', login)}@{host}", path=change.get("path", parts.path)).geturl()
    told = refusal(opened(url, amqp_queue))
    assert said in told
    assert "wrong-password" not in told
    assert name_of(InboxQueue(SecretUrl(url), amqp_queue)) in told


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:{}/", "amqp://no-such-host.invalid:{}/", "amqp://127.0.0.1:x/"])
def test_a_rabbitmq_that_cannot_be_reached_is_reported(opened: Open, url: str) -> None:
    refusal(opened(url.format(free_port()), "queue"))


@pytest.mark.parametrize("moment", ["connecting", "receiving", "acknowledging", "closing"])
def test_a_rabbitmq_that_never_answers_is_not_waited_for_for_ever(
    opened: Open, monkeypatch: pytest.MonkeyPatch, amqp_url: str, amqp_queue: str, moment: str
) -> None:
    monkeypatch.setattr("etl.inbox.rabbitmq.ANSWER_SECONDS", 1)
    amqp_declare(amqp_url, amqp_queue)
    amqp_publish(amqp_url, amqp_queue, A)
    if moment == "connecting":
        with deaf() as port:
            refusal(opened(f"amqp://127.0.0.1:{port}/", amqp_queue))
        return
    with proxied(amqp_url) as (proxy, url):
        source = opened(url, amqp_queue)
        batch = received(source)
        proxy.stall = True
        if moment == "receiving":
            with pytest.raises(InboxUnavailable, match="no answer in time"):
                source.receive(None)
        elif moment == "acknowledging":
            with suppress(InboxUnavailable):  # to send it is all that can be done
                source.acknowledge(batch)
        source.close()
    assert read(opened(amqp_url, amqp_queue)) == [A]


@pytest.mark.skipif(not OwnRabbitMQ.is_here(), reason="no rabbitmq-server")
def test_a_rabbitmq_that_restarts_between_receiving_and_acknowledging_loses_nothing(opened: Open) -> None:
    with OwnRabbitMQ() as server:
        assert opened(server.url, "queue").receive(None) is None
        amqp_publish(server.url, "queue", A)
        source = opened(server.url, "queue")
        batch = received(source)
        server.restart()
        with pytest.raises(InboxUnavailable):
            source.acknowledge(batch)
        assert read(opened(server.url, "queue")) == [A]
        server.kill()
        refusal(opened(server.url, "queue"))

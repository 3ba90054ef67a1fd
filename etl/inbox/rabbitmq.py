"""A queue of a RabbitMQ as an inbox: messages are got one by one, and acknowledged when their ids are committed.

A queue that does not exist is made (durable): without one, the broker would drop what is published, without a word.
What was got and not acknowledged is delivered again when the connection ends, however it ends.
https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from etl.errors import InboxUnavailable
from etl.inbox.source import BATCH, Batch, Message
from etl.inbox.text import decode

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

CONNECT_SECONDS = 5
ANSWER_SECONDS = 10
HEARTBEAT_SECONDS = 300  # while a batch is committed nobody answers heartbeats
NOT_FOUND = 404

T = TypeVar("T")


class RabbitSource:
    """One queue."""

    def __init__(self, url: str, queue: str, name: str) -> None:
        self.name = name
        self._url, self._queue = url, queue
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._answers = 0

    def receive(self, position: str | None) -> Batch | None:
        """Up to a batch of what waits."""
        with self._translated():
            channel = self._opened()
            messages = self._answer(lambda: self._get(channel))
        return Batch(messages) if messages else None

    def acknowledge(self, batch: Batch) -> None:
        """All of them at once."""
        with self._translated():
            channel = self._opened()
            self._answer(lambda: channel.basic_ack(batch.messages[-1].handle, multiple=True))
            self._answer(channel.connection.process_data_events)  # a broker that refuses may have said so

    def examine(self) -> str:
        """How much waits in the queue."""
        with self._translated():
            try:
                channel = self._connect()
                found = self._answer(lambda: channel.queue_declare(self._queue, passive=True))
            except ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
                return "can be reached; the queue does not exist yet, the next sync makes it"
            return f"a queue, {found.method.message_count:,} messages wait"

    def close(self) -> None:
        """End the connection: what is not acknowledged goes back to the queue."""
        with suppress(*_ERRORS):
            if self._connection is not None and self._connection.is_open:
                self._answer(self._connection.close)
        self._connection = self._channel = None

    def _get(self, channel: BlockingChannel) -> list[Message]:
        messages: list[Message] = []
        while len(messages) < BATCH:
            method, _, body = channel.basic_get(self._queue)
            self._answers += 1
            if method is None:
                break
            messages.append(Message(decode(body or b""), method.delivery_tag))
        return messages

    def _opened(self) -> BlockingChannel:
        if self._channel is None:
            self._declare(self._connect())
        if self._channel is None:
            raise AssertionError("no channel")
        return self._channel

    def _connect(self) -> BlockingChannel:
        parameters = pika.URLParameters(self._url)
        parameters.socket_timeout = CONNECT_SECONDS
        parameters.stack_timeout = ANSWER_SECONDS
        parameters.blocked_connection_timeout = ANSWER_SECONDS
        parameters.heartbeat = HEARTBEAT_SECONDS
        parameters.connection_attempts = 1  # the next pass is the retry
        parameters.client_properties = {"connection_name": "checkly-etl"}
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._answer(self._connection.channel)
        return self._channel

    def _declare(self, channel: BlockingChannel) -> None:
        """Passively first: a queue that somebody made with arguments of their own is good as it is."""
        try:
            self._answer(lambda: channel.queue_declare(self._queue, passive=True))
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            self._channel = channel = self._answer(channel.connection.channel)
            self._answer(lambda: channel.queue_declare(self._queue, durable=True))

    def _answer(self, ask: Callable[[], T]) -> T:
        """What a call of pika returns, which itself waits until heartbeats are missed: it is then left alone."""
        answer: Future[T] = Future()
        connection = self._connection
        is_left_alone = threading.Event()

        def run() -> None:
            try:
                answer.set_result(ask())
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                answer.set_exception(error)
            if is_left_alone.is_set() and connection is not None:
                with suppress(*_ERRORS):
                    connection.close()  # what it was given after all goes back to the queue

        threading.Thread(target=run, name="rabbitmq", daemon=True).start()
        answers = self._answers
        while not wait([answer], timeout=ANSWER_SECONDS).done:
            if self._answers == answers:
                is_left_alone.set()
                self._connection = self._channel = None
                raise TimeoutError("no answer in time")
            answers = self._answers
        return answer.result()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            self.close()
            raise InboxUnavailable(f"inbox {self.name}: {_said(error)}") from error


# The last three are what pika makes of a URL that is none.
_ERRORS = (AMQPError, AMQPConnectorException, OSError, ValueError, KeyError, IndexError)


def _said(error: BaseException) -> str:
    """pika's errors say little: most hold another one, some nothing at all. None may tell the password."""
    if isinstance(error, ProbableAuthenticationError):
        return "RabbitMQ refuses user or password"
    if isinstance(error, ProbableAccessDeniedError):
        return "RabbitMQ refuses this user the virtual host, or there is none of this name"
    if isinstance(error, (ChannelClosedByBroker, ConnectionClosedByBroker)):
        return f"RabbitMQ says {error.reply_code} {' '.join(str(error.reply_text).split())[:200]}"
    inner: object = error
    for _ in range(5):
        held = [item for item in getattr(inner, "args", ()) if isinstance(item, BaseException)]
        held += [item for item in (getattr(inner, "exception", None),) if isinstance(item, BaseException)]
        if not held:
            break
        inner = held[0]
    if isinstance(inner, socket.gaierror):
        return "the host is not known"
    if isinstance(inner, (OSError, AMQPConnectorStackTimeout)):
        return getattr(inner, "strerror", None) or "no answer in time"
    return f"cannot be used ({type(inner).__name__})"

"""A queue of a RabbitMQ as an inbox: messages are got one by one, and acknowledged when their ids are committed.

A queue that does not exist is made (durable): without one, the broker would drop what is published, without a word.
What was got and not acknowledged is delivered again when the connection ends, however it ends.
https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pika
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


class RabbitSource:
    """One queue."""

    def __init__(self, url: str, queue: str, name: str) -> None:
        self.name = name
        self._url, self._queue = url, queue
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None

    def receive(self, position: str | None) -> Batch | None:
        """Up to a batch of what waits."""
        messages: list[Message] = []
        with self._translated():
            channel = self._opened()
            while len(messages) < BATCH:
                method, _, body = channel.basic_get(self._queue)
                if method is None:
                    break
                messages.append(Message(decode(body or b""), method.delivery_tag))
        return Batch(messages) if messages else None

    def acknowledge(self, batch: Batch) -> None:
        """All of them at once."""
        with self._translated():
            self._opened().basic_ack(batch.messages[-1].handle, multiple=True)
            self._connection.process_data_events()  # type: ignore[union-attr] # a broker that refuses says so now

    def examine(self) -> str:
        """How much waits in the queue."""
        with self._translated():
            self._connect()
            try:
                found = self._channel.queue_declare(self._queue, passive=True)  # type: ignore[union-attr]
            except ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
                return "can be reached; the queue does not exist yet, the next sync makes it"
            return f"a queue, {found.method.message_count:,} messages wait"

    def close(self) -> None:
        """End the connection: what is not acknowledged goes back to the queue."""
        with suppress(AMQPError, OSError):
            if self._connection is not None and self._connection.is_open:
                self._connection.close()
        self._connection = self._channel = None

    def _opened(self) -> BlockingChannel:
        if self._channel is None:
            self._connect()
            self._declare()
        if self._channel is None:
            raise AssertionError("no channel")
        return self._channel

    def _connect(self) -> None:
        parameters = pika.URLParameters(self._url)
        parameters.socket_timeout = CONNECT_SECONDS
        parameters.stack_timeout = ANSWER_SECONDS
        parameters.blocked_connection_timeout = ANSWER_SECONDS
        parameters.heartbeat = HEARTBEAT_SECONDS
        parameters.connection_attempts = 1  # the next pass is the retry
        parameters.client_properties = {"connection_name": "checkly-etl"}
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._connection.channel()

    def _declare(self) -> None:
        """Passively first: a queue that somebody made with arguments of their own is good as it is."""
        channel = self._channel
        if channel is None or self._connection is None:
            raise AssertionError("no channel")
        try:
            channel.queue_declare(self._queue, passive=True)
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            self._channel = self._connection.channel()
            self._channel.queue_declare(self._queue, durable=True)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (AMQPError, OSError, ValueError, KeyError, IndexError) as error:
            # The last three are what pika makes of a URL that is none.
            self.close()
            raise InboxUnavailable(f"inbox {self.name}: {_said(error)}") from error


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
    if isinstance(inner, OSError):
        return inner.strerror or "no answer in time"
    return f"cannot be used ({type(inner).__name__})"

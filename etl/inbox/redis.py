"""A list or a stream of a Redis (or Valkey) as an inbox; which of them, its key's type tells.

A list: each message is moved to the list `QUEUE:checkly-etl` and taken off there when it is acknowledged, so what a
reader that died had taken is found there by the next one. A stream: the consumer group `checkly-etl` and its
pending entries do the same; entries stay in the stream, as its other readers expect. One reader at a time (`ledger`).
https://redis.io/docs/latest/commands/lmove/ https://redis.io/docs/latest/commands/xreadgroup/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from etl.errors import InboxUnavailable
from etl.inbox.source import BATCH, Batch, Message
from etl.inbox.text import decode, text_of_fields

CONNECT_SECONDS = 5
ANSWER_SECONDS = 10
GROUP = CONSUMER = "checkly-etl"

_COMMAND = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ")  # with the message that it acknowledges


class RedisSource:
    """One key of a Redis. A key that does not exist is an empty inbox."""

    def __init__(self, url: str, queue: str, name: str) -> None:
        self.name = name
        self._key = queue
        self._taken = f"{queue}:{GROUP}"
        self._is_grouped = False
        with self._translated():
            self._redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                retry=Retry(NoBackoff(), 0),  # the next pass is the retry
                protocol=2,  # servers before Redis 6 know no other
                decode_responses=False,  # a message that is not UTF-8 is still a message
            )

    def receive(self, position: str | None) -> Batch | None:
        """What a reader that died had taken, then what is new."""
        with self._translated():
            kind = self._kind()
            messages = self._from_stream() if kind == "stream" else self._from_list(is_there=kind == "list")
        return Batch(messages) if messages else None

    def acknowledge(self, batch: Batch) -> None:
        """Take them off the list of what was taken, or off the group's pending entries."""
        with self._translated(), self._redis.pipeline(transaction=False) as pipeline:
            for message in batch.messages:
                kind, handle = message.handle
                if kind == "stream":
                    pipeline.xack(self._key, GROUP, handle)
                else:
                    pipeline.lrem(self._taken, 1, handle)
            pipeline.execute()

    def examine(self) -> str:
        """What the key is, and how much waits there."""
        with self._translated():
            kind = self._kind()
            if kind == "stream":
                return f"a stream of {self._redis.xlen(self._key):,} entries"
            waiting = self._redis.llen(self._key) + self._redis.llen(self._taken)
            if not kind and not waiting:
                return "can be reached; nothing has been pushed yet"
            return f"a list, {waiting:,} messages wait"

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _kind(self) -> str:
        """`list`, `stream`, or nothing where the key does not exist. Raises InboxUnavailable for other types."""
        kind = decode(self._redis.type(self._key))
        if kind not in ("list", "stream", "none"):
            raise InboxUnavailable(f"inbox {self.name}: the key holds a {kind}; an inbox is a list or a stream")
        return "" if kind == "none" else kind

    def _from_list(self, *, is_there: bool) -> list[Message]:
        taken = self._redis.lrange(self._taken, 0, BATCH - 1)
        if not taken and is_there:
            with self._redis.pipeline(transaction=False) as pipeline:
                for _ in range(min(BATCH, self._redis.llen(self._key))):
                    pipeline.lmove(self._key, self._taken, "LEFT", "RIGHT")
                taken = [item for item in pipeline.execute() if item is not None]
        return [Message(decode(item), ("list", item)) for item in taken]

    def _from_stream(self) -> list[Message]:
        if not self._is_grouped:
            try:
                self._redis.xgroup_create(self._key, GROUP, id="0")
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            self._is_grouped = True
        for start in ("0", ">"):  # its own pending entries first
            answer = self._redis.xreadgroup(GROUP, CONSUMER, {self._key: start}, count=BATCH)
            entries = [entry for _, entries in answer or () for entry in entries]
            if entries:
                return [Message(_text(fields), ("stream", id_)) for id_, fields in entries]
        return []

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.AuthenticationError as error:
            raise InboxUnavailable(f"inbox {self.name}: Redis refuses user or password ({_said(error)})") from error
        except (redis.RedisError, OSError) as error:
            raise InboxUnavailable(f"inbox {self.name}: {_said(error)}") from error
        except ValueError as error:  # a port or an option that is none
            raise InboxUnavailable(f"inbox {self.name}: the URL cannot be used ({_said(error)})") from error


def _text(fields: Mapping[bytes, bytes] | None) -> str:
    """Of a stream's entry; one that was deleted while it was pending has no fields any more."""
    return text_of_fields([(decode(name), decode(value)) for name, value in (fields or {}).items()])


def _said(error: BaseException) -> str:
    said = _COMMAND.sub("", " ".join(str(error).split()))
    return said[:200] or type(error).__name__

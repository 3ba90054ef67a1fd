"""The inboxes: test session ids in what people and CI hand over, from text, files and message brokers.

    text        ids and accounts in a piece of text: arguments, links, pasted output, reports, messages
    files       a file that grows, is rotated, truncated or replaced
    redis       a list or a stream of a Redis
    rabbitmq    a queue of a RabbitMQ
    ledger      who reads an inbox and how far (`etl_inboxes`), and what held no id (`etl_inbox_rejects`)

Hides where a message comes from and how it is acknowledged there. Knows neither the queue nor the pass: who reads
an inbox commits the ids first and acknowledges then, so a crash between the two brings a message twice, never not.
"""

from __future__ import annotations

from etl.config import InboxFile, InboxQueue
from etl.inbox.source import Batch, Message, Source
from etl.inbox.text import Found, decode, find, find_accounts, find_ids, lines_not_taken, read_argument

__all__ = [
    "Batch",
    "Found",
    "Message",
    "Source",
    "decode",
    "find",
    "find_accounts",
    "find_ids",
    "lines_not_taken",
    "name_of",
    "open_source",
    "read_argument",
]


def open_source(settings: InboxFile | InboxQueue) -> Source:
    """The source that the settings mean; nothing is read or connected to yet."""
    # Imported where they are needed: a broker's client costs more to import than a whole idle pass without.
    if isinstance(settings, InboxFile):
        from etl.inbox.files import FileSource

        return FileSource(settings.file, name_of(settings))
    if settings.url.reveal().lower().startswith("amqp"):
        from etl.inbox.rabbitmq import RabbitSource

        return RabbitSource(settings.url.reveal(), settings.queue, name_of(settings))
    from etl.inbox.redis import RedisSource

    return RedisSource(settings.url.reveal(), settings.queue, name_of(settings))


def name_of(settings: InboxFile | InboxQueue) -> str:
    """What people, `etl_inboxes` and the metrics call it: never a password."""
    if isinstance(settings, InboxFile):
        return f"file {settings.file.absolute()}"
    return f"{settings.url.shown} {settings.queue}"

"""What every inbox is to its reader: batches of messages, each acknowledged when its ids are safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BATCH = 500  # messages taken at a time


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `handle` is what its source acknowledges it by."""

    text: str
    handle: Any = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages to be committed together. `position` is to be remembered with them, and given back next time."""

    messages: Sequence[Message]
    position: str | None = None


class Source(Protocol):
    """One inbox. Every method may wait for some seconds, never for ever, and raises InboxUnavailable."""

    name: str

    def receive(self, position: str | None) -> Batch | None:
        """What has come since, oldest first; None when there is nothing more. Not acknowledged before it is said."""

    def acknowledge(self, batch: Batch) -> None:
        """The batch is committed: it need not come again."""

    def examine(self) -> str:
        """What is there, for people; takes nothing and changes nothing."""

    def close(self) -> None:
        """Let go of it. What was received and not acknowledged comes again."""

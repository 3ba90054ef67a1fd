"""Readiness for systemd: sd_notify(3) in a few lines, where NOTIFY_SOCKET is set. Nothing elsewhere."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Tell systemd; one that does not listen is not told."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(message.encode(), "\0" + path[1:] if path[0] == "@" else path)


def watchdog() -> None:
    """The scheduler ticks; only where the unit has WatchdogSec."""
    if watchdog_seconds() is not None:
        notify("WATCHDOG=1")


def watchdog_seconds() -> float | None:
    """After how long without a tick systemd kills the process; None if never."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else None

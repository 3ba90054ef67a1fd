"""How the pieces are put together for a command: settings, the warehouse, the pipeline's context, signals.

Whatever a command opens here is closed when its `with` ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from etl.cli.arguments import Arguments
from etl.cli.version import version
from etl.errors import EtlError

if TYPE_CHECKING:
    from etl.config import Settings
    from etl.database import Database
    from etl.pipeline import Etl

_M_ARENA_MAX = -8  # of malloc.h
HARD_STOP = 3.0  # seconds after `schedule.grace` in which a signalled process is over at the latest


def load_settings(arguments: Arguments) -> Settings:
    from etl import config

    settings = config.load(arguments.config, os.environ)
    arguments.redactor.learn(settings.secrets)
    return settings


def secrets_of(env: Mapping[str, str]) -> set[str]:
    """What must not be told even before the settings say what is a secret: their own errors quote what they found."""
    secrets = {
        value
        for name, value in env.items()
        if name.startswith("CHECKLY_") and name.endswith(("_KEY", "__TOKEN")) and value
    }
    urls = [value for name, value in env.items() if name.lower().endswith(("_proxy", "_url"))]
    return secrets | _passwords(urls)


def _passwords(urls: Iterable[str]) -> set[str]:
    from urllib.parse import unquote

    found = {url.split("://", 1)[-1].rpartition("@")[0].partition(":")[2] for url in urls}
    return found | {unquote(password) for password in found}


@contextmanager
def open_database(
    settings: Settings, *, create: bool = False, check: bool = True, stop: threading.Event | None = None
) -> Iterator[Database]:
    from etl import schema
    from etl.database import Database

    database = Database(
        settings.warehouse.url.reveal(),
        schema=settings.warehouse.schema,
        create=create,
        # Accounts work side by side; a server has a hundred connections, for all its clients.
        connections=settings.export.concurrency + 4 * min(max(1, len(settings.checkly.accounts)), 4),
        stop=stop,
    )
    try:
        if check:
            database.read(schema.check_current)
        yield database
    finally:
        database.close()


@contextmanager
def open_etl(
    arguments: Arguments, settings: Settings, *, max_time: timedelta | None = None
) -> Iterator[tuple[Etl, Signals]]:
    """Everything that a long command needs; a signal or the end of `max_time` makes it stop soon."""
    from etl.pipeline import Etl, Silent

    _share_one_heap()
    only = tuple(getattr(arguments, "account", None) or ())
    if arguments.command != "replay":
        settings.require_accounts(only)  # before anything is touched
    stop = threading.Event()
    # The signals last longer than the database: closing it is not to be interrupted.
    with Signals(stop, settings.schedule.grace.total_seconds()) as signals:
        try:
            # The daemon checks the schema itself: it waits for a warehouse that cannot be reached yet.
            is_checked = arguments.command != "daemon"
            with open_database(settings, check=is_checked, stop=stop) as database, _alarm(max_time) as alarm:
                progress = arguments.bar or Silent()
                etl = Etl(
                    settings, database, user_agent=user_agent(), stop=stop, progress=progress, only_accounts=only
                )
                alarm.append(etl)
                yield etl, signals
        except EtlError:
            if signals.number is not None:  # what failed was no longer waited for
                raise Signalled(signals.number) from None
            raise


def _share_one_heap() -> None:
    """glibc gives each thread a heap of its own, and what is freed in one fills no need of another: megabytes."""
    import ctypes  # nothing that starts no threads needs it

    with suppress(AttributeError, OSError, TypeError):  # another C library has no such heaps
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextmanager
def _alarm(max_time: timedelta | None) -> Iterator[list[Etl]]:
    """Stops what is put into the list when the time is up."""
    stopped: list[Etl] = []

    def end_of_time() -> None:
        for etl in stopped:
            etl.time_is_up = True
            etl.stop.set()

    if max_time is None:
        yield stopped
        return
    timer = threading.Timer(max_time.total_seconds(), end_of_time)
    timer.daemon = True
    timer.start()
    try:
        yield stopped
    finally:
        timer.cancel()


class Signalled(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


class Signals:
    """The first SIGINT or SIGTERM sets `stop`, a second one ends the process at once."""

    def __init__(self, stop: threading.Event, grace: float) -> None:
        self._stop, self._grace = stop, grace
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """Of the one that came."""
        return "no signal" if self.number is None else signal.Signals(self.number).name

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self._stop.set()
        # A call that hangs must not hold the process: its claims are given back by the next run of this machine.
        timer = threading.Timer(self._grace + HARD_STOP, os._exit, [128 + number])
        timer.daemon = True
        timer.start()


def raise_signalled(number: int, frame: FrameType | None) -> None:
    """Raise Signalled where the signal came.

    Inside the import system it is sent again a moment later: Python prints and forgets what is raised in one of its
    callbacks.
    """
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        again = threading.Timer(0.01, os.kill, [os.getpid(), number])
        again.daemon = True
        again.start()
        return
    raise Signalled(number)


def user_agent() -> str:
    return f"checkly-etl/{version()}"

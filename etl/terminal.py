"""What a person or a machine sees of a running command: logs and progress.

Hides the terminal. Logs and progress go to stderr, progress only on a terminal; stdout belongs to results.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from etl.redaction import Redactor

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_STANDARD = logging.getLogger("etl")


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """What the API says can forge no line of a log, and command no terminal."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


RUNBOOK = "docs/runbook.md"
# What logging itself puts into a record; the rest is ours, given as `extra`.
_OF_EVERY_RECORD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


class _Formatter(logging.Formatter):
    def __init__(self, redactor: Redactor, style: str) -> None:
        super().__init__()
        self._redactor, self._style_name = redactor, style

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = one_line(record.getMessage())
        trace = self.formatException(record.exc_info) if record.exc_info else None
        extra = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if section := extra.pop("runbook", None):
            extra["runbook"] = f"{RUNBOOK}#{section}"
        if self._style_name == "json":
            line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "message": message, **extra}
            if trace:
                line["traceback"] = trace
            return self._redactor.hide(json.dumps(line, ensure_ascii=False, default=str))
        text = f"{moment} {record.levelname.lower():7} {message}"
        if section:
            text += f" ({extra['runbook']})"
        return self._redactor.hide(f"{text}\n{trace}" if trace else text)


# What these warn of (lost connections, headers that are none, passes that overlap) we say ourselves where it matters.
_LIBRARIES = {
    "sqlalchemy": logging.WARNING,
    "alembic": logging.WARNING,
    "psycopg": logging.ERROR,
    "urllib3": logging.ERROR,
    "apscheduler": logging.ERROR,
    "redis": logging.ERROR,
    "pika": logging.CRITICAL,
}


def set_up_logging(*, style: str, verbosity: int, bar: Bar | None, redactor: Redactor) -> None:
    """`style` text or json; `verbosity` -1 quiet, 0 default, 1 everything. Once a process.

    Where a bar shows what goes on, the lines of single sessions would only tear it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(redactor, style))
    level = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}[verbosity]
    if bar is not None and verbosity < 1:
        handler.addFilter(lambda record: record.levelno >= logging.WARNING)
    _STANDARD.handlers = [handler]
    _STANDARD.setLevel(level)
    _STANDARD.propagate = False
    for library, their_level in _LIBRARIES.items():
        theirs = logging.getLogger(library)
        theirs.handlers, theirs.propagate = [handler], False
        theirs.setLevel(their_level)


class Bar:
    """A progress bar with rate and time left on stderr (rich)."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None) -> None:
        """A new phase; the bar of the one before disappears."""
        if self._progress is None:
            self._progress = _rich_progress()
            self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=total, note="")

    def advance(self, steps: int) -> None:
        """Steps done; a phase that turns out longer than thought grows."""
        if self._progress is None or self._task is None:
            return
        self._progress.update(self._task, advance=steps, note="")
        task = self._progress.tasks[0]
        if task.total is not None and task.completed > task.total:
            self._progress.update(self._task, total=task.completed)

    def note(self, text: str) -> None:
        """A word beside the bar: why nothing moves."""
        if self._progress is not None and self._task is not None:
            with suppress(KeyError):  # the phase ended meanwhile
                self._progress.update(self._task, note=text)

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="yellow"),
        console=Console(stderr=True),
        transient=True,
    )

"""`checkly-etl report`: what the views say, as one HTML file that needs no network.

    reading   the views' rows, coded into columns
    page      columns, style and scripts -> one HTML document
    page/     the document's style and scripts; they filter, add up and draw in the browser
    uplot/    the chart library, as its package ships it (decisions/0013)

What is counted is said by the views alone. The page adds up their counts, and orders and summarizes what a filter
leaves of them. It opens from a disk, from a mail's attachment, from a CI system's artifacts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from etl.errors import ConfigError
from etl.report.page import html
from etl.report.reading import read


@dataclass(frozen=True)
class Report:
    """A page: `html` is the whole document, without the secrets that `hide` knew."""

    html: str
    days: int
    is_empty: bool  # nothing was ever exported
    test_sessions: int  # in the days shown, as executions
    executions: int


def make(
    connection: Connection,
    *,
    since: datetime,
    accounts: Collection[str],
    loss_warning_hours: float,
    version: str,
    hide: Callable[[str], str],
) -> Report:
    """Read the views and lay out the page. The transaction must not have read anything yet.

    The page shows whole UTC days: those that began at `since` or later, today at least. `accounts` are ids or names;
    none: all. `hide` takes secrets out of a text. Raises ConfigError for a `since` that is still to come, and for an
    account that the warehouse does not know.
    """
    if connection.dialect.name == "postgresql":
        # One snapshot for all queries, so that the numbers agree with each other.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    data = read(connection, since=since, accounts=accounts, hide=hide)
    facts = {"version": version, "loss_warning_hours": loss_warning_hours}
    page = html({**data.columns, **facts})
    return Report(page, data.days, data.is_empty, data.test_sessions, data.executions)


def write(report: Report, path: Path) -> Path:
    """Put the page there, as a whole or not at all; returns the absolute path. Raises ConfigError if that fails."""
    try:
        path = path.resolve() if path.is_file() else path.absolute()
        if path.exists() and not path.is_file():  # a pipe, a device; a folder fails
            path.write_text(report.html, encoding="utf-8", newline="\n")
            return path
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(report.html, encoding="utf-8", newline="\n")
            if path.exists():
                beside.chmod(path.stat().st_mode)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {path}: {error.strerror or error}") from None
    return path

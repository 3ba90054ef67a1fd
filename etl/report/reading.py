"""The views' rows, as columns for the page.

Each query is a SELECT from views, and what a column holds is told by its name alone, as everywhere in the warehouse:

    day            days since the first day shown
    … _at          seconds since 1970
    account_id, … and every other text or id: its place in `texts`, 0 for null
    check          a check's place in `checks`, -1 for null (two columns of a view: account_id and check_key)
    numbers        as they are; milliseconds are whole

What a large warehouse holds of one kind is cut to what a page can carry (`CUTS`); the page says what was left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from etl.database import now
from etl.errors import ConfigError

Row = Mapping[str, Any]
Columns = dict[str, list[Any]]

# How many rows of each kind at most; the newest, or those that weigh most, stay.
CUTS = {
    "dead": 50,
    "open_streaks": 3_000,
    "fixed_streaks": 10_000,
    "failures": 4_000,
    "errors": 300,
    "daily": 200_000,
}
FAILURES_OF_A_CHECK = (10, 5, 3, 2, 1)  # as many as fit into CUTS["failures"]
LONGEST_EMPTY = 366  # days: a page that is to show more of them begins with the oldest that has something
LONGEST_TEXT = 2_000  # characters of a message; the warehouse has it whole
BRANCHES_OF_MANY = 20  # where there are too many rows, the branches beside these go into one

# {of}: the accounts asked for, as a condition; {since}: the first day shown; {moment}: its beginning.
QUERIES = {
    "freshness": """
        SELECT f.account_id, c.account_name, f.last_success_at, f.newest_started_at, c.oldest_started_at, f.due,
               f.scheduled, f.leased, f.dead, f.oldest_due_at, f.hours_until_loss, c.test_sessions, c.unexported,
               c.coverage, c.failed_runs
        FROM v_freshness f
        JOIN v_report_coverage c
            ON COALESCE(CAST(c.account_id AS text), '') = COALESCE(CAST(f.account_id AS text), '')
        WHERE {of}
        ORDER BY c.account_name, f.account_id""",
    "dead": """
        SELECT f.test_session_id, f.account_id, f.error_kind, f.last_error, f.last_error_at
        FROM v_report_dead_letters f
        WHERE {of}
        ORDER BY f.last_error_at DESC, f.test_session_id""",
    "sessions": """
        SELECT f.day, f.account_id, f.branch_name, f.environment, f.verdict, f.test_sessions
        FROM v_report_session_daily f
        WHERE f.day >= {since} AND {of}
        ORDER BY f.account_id, f.branch_name, f.environment, f.verdict, f.day""",
    "daily": """
        SELECT f.day, f.account_id, f.check_key, f.branch_name, f.environment,
               SUM(f.executions) AS executions, SUM(f.passed) AS passed, SUM(f.failed) AS failed,
               SUM(f.errored) AS errored, SUM(f.retry_flaky) AS retry_flaky,
               SUM(f.retry_cost_ms) AS retry_cost_ms, SUM(f.passed_duration_ms_sum) AS passed_duration_ms_sum,
               SUM(f.passed_duration_n) AS passed_duration_n
        FROM v_check_daily f
        WHERE f.day >= {since} AND {of}
        GROUP BY f.day, f.account_id, f.check_key, f.branch_name, f.environment
        ORDER BY f.account_id, f.check_key, f.branch_name, f.environment, f.day""",
    "flips": """
        SELECT f.day, f.account_id, f.check_key, f.branch_name, f.environment, f.comparable, f.flips
        FROM v_report_flip_daily f
        WHERE f.day >= {since} AND f.comparable > 0 AND {of}
        ORDER BY f.account_id, f.check_key, f.branch_name, f.environment, f.day""",
    "streaks": """
        SELECT f.account_id, f.check_key, f.branch_name, f.environment, f.run_location, f.first_failed_at,
               f.last_failed_at, f.recovered_at, f.failures, f.time_to_fix_ms, f.first_failed_commit_id,
               f.recovered_commit_id, f.link
        FROM v_failure_streaks f
        WHERE (f.last_failed_at >= {moment} OR f.recovered_at >= {moment}) AND {of}
        ORDER BY f.first_failed_at DESC, f.account_id, f.check_key, f.branch_name, f.environment, f.run_location,
                 f.link""",
    "flaky": """
        SELECT f.account_id, f.check_key, f.commits, f.commit_flaky
        FROM v_flaky_checks f
        WHERE {of}
        ORDER BY f.account_id, f.check_key""",
    "commit_flakiness": """
        SELECT f.account_id, f.check_key, f.environment, f.commits, f.commit_flaky
        FROM v_report_commit_flakiness f
        WHERE f.commits > 0 AND {of}
        ORDER BY f.account_id, f.check_key, f.environment""",
    "regressions": """
        SELECT f.account_id, f.check_key, f.environment, f.run_location, f.recent_p95_duration_ms,
               f.baseline_p95_duration_ms, f.recent_n, f.baseline_n, f.baseline_days, f.ratio
        FROM v_duration_regressions f
        WHERE {of}
        ORDER BY f.account_id, f.check_key, f.environment, f.run_location""",
    "errors": """
        SELECT f.error_group_id, f.account_id, f.cleaned_error_message, f.occurrences, f.test_sessions,
               f.first_observed_at, f.last_observed_at, f.first_seen, f.last_seen, f.is_new, f.is_regression
        FROM v_error_group_impact f
        WHERE f.last_observed_at >= {moment}
        ORDER BY f.occurrences DESC, f.error_group_id""",
    "error_daily": """
        SELECT f.day, f.error_group_id, f.account_id, f.check_key, f.branch_name, f.environment, f.occurrences
        FROM v_report_error_daily f
        WHERE f.day >= {since} AND {of}
        ORDER BY f.error_group_id, f.account_id, f.check_key, f.branch_name, f.environment, f.day""",
    "failures": """
        SELECT f.account_id, f.check_key, f.branch_name, f.environment, f.run_location, f.started_at, f.commit_id,
               f.link, f.retries, f.duration_ms, f.is_new_failure, f.history_key, f.test_session_id,
               f.test_session_result_id
        FROM v_execution_history f
        WHERE f.verdict = 'FAILED' AND f.started_at >= {moment} AND {of}
        ORDER BY f.started_at DESC, f.test_session_id DESC, f.execution_no DESC""",
    "failure_errors": """
        SELECT f.test_session_id, f.test_session_result_id, f.error_group_id
        FROM v_error_occurrences f
        WHERE f.started_at >= {moment} AND f.verdict = 'FAILED' AND {of}
        ORDER BY f.test_session_id, f.test_session_result_id, f.error_group_id""",
    "checks": """
        SELECT f.account_id, f.check_key, f.check_name, f.check_type, f.last_verdict, f.first_started_at,
               f.last_started_at, f.ambiguous
        FROM v_checks f
        WHERE {of}
        ORDER BY f.account_id, f.check_key""",
}


@dataclass(frozen=True)
class Data:
    """`columns`: for the page, ready for JSON. The rest: totals of the days shown, for a message."""

    columns: dict[str, Any]
    days: int
    is_empty: bool  # nothing was ever exported
    test_sessions: int
    executions: int


def read(connection: Connection, *, since: datetime, accounts: Collection[str], hide: Callable[[str], str]) -> Data:
    """See `report.make`. The numbers agree with each other if the transaction sees one snapshot."""
    moment = now(connection)
    if since > moment:
        raise ConfigError(f"--since {since:%Y-%m-%d %H:%M} UTC is still to come: there is nothing to report")
    first_day = _first_whole_day(since, moment)
    source = _Source(connection, first_day)
    freshness = source.rows("freshness")
    oldest = min((_day(row["oldest_started_at"]) for row in freshness if row["oldest_started_at"]), default=first_day)
    if (moment.date() - first_day).days > LONGEST_EMPTY:
        first_day = max(first_day, min(oldest, moment.date()))
        source = _Source(connection, first_day)
    if accounts:
        source.restrict_to(_ids_of(accounts, freshness))
        freshness = source.rows("freshness")
    page = _Coder(first_day, hide)

    columns: dict[str, Any] = {
        "written_at": math.floor(moment.timestamp()),
        "first_day": first_day.isoformat(),
        "days": (moment.date() - first_day).days + 1,
        "left_out": {},
    }

    def keep(name: str, rows: list[Row]) -> list[Row]:
        kept = rows[: CUTS[name]]
        if len(kept) < len(rows):
            columns["left_out"][name] = len(rows) - len(kept)
        return kept

    columns["freshness"] = page.columns(freshness)
    columns["dead"] = page.columns(keep("dead", source.rows("dead")))
    daily = source.rows("daily")
    if len(daily) > CUTS["daily"]:
        page.fold_branches(daily)
        columns["left_out"]["branches"] = len(page.folded)
    columns["daily"] = page.columns(page.folded_sums(daily))
    columns["flips"] = page.columns(page.folded_sums(source.rows("flips")))
    columns["sessions"] = page.columns(page.folded_sums(source.rows("sessions")))
    streaks = source.rows("streaks")
    columns["open_streaks"] = page.columns(keep("open_streaks", [s for s in streaks if s["recovered_at"] is None]))
    columns["fixed_streaks"] = page.columns(keep("fixed_streaks", [s for s in streaks if s["recovered_at"]]))
    for name in ("flaky", "commit_flakiness", "regressions"):
        columns[name] = page.columns(source.rows(name))
    seen = source.rows("error_daily")
    # A group belongs to the account that it was first seen in, and is seen in others, too.
    here = {row["error_group_id"] for row in seen}
    errors = keep("errors", [row for row in source.rows("errors") if row["error_group_id"] in here])
    shown = {row["error_group_id"] for row in errors}
    columns["errors"] = page.columns(errors)
    seen = page.folded_sums([row for row in seen if row["error_group_id"] in shown])
    columns["error_daily"] = page.columns(seen)
    if seen:  # where there is no check, only this tells the account
        columns["error_daily"]["account_id"] = [page.text(row["account_id"]) for row in seen]
    failures, per_check = _newest_failures(source.rows("failures"))
    columns["failures_of_a_check"] = per_check
    columns["failures"] = page.columns([_without(row, _ONLY_HERE) for row in failures])
    if failures:
        columns["failures"]["errors"] = _errors_of(failures, source.rows("failure_errors"), shown, page)
    columns["checks"] = page.checks(source.rows("checks"))
    columns["texts"] = page.texts
    days = columns["days"]
    return Data(
        columns,
        days,
        is_empty=not any(row["test_sessions"] for row in freshness),
        test_sessions=_total(columns["sessions"], "test_sessions", days),
        executions=_total(columns["daily"], "executions", days),
    )


def _first_whole_day(since: datetime, moment: datetime) -> date:
    """So that an age of 30 days is the last 30 UTC days, today among them: no day is shown in part but today."""
    midnight = datetime.combine(since.date(), time(), UTC)
    day = since.date() if since == midnight else since.date() + timedelta(days=1)
    return min(day, moment.date())


def _ids_of(accounts: Iterable[str], known: Sequence[Row]) -> list[UUID]:
    found: list[UUID] = []
    problems = []
    for account in map(str.strip, accounts):
        matching = [
            UUID(str(row["account_id"]))
            for row in known
            if row["account_id"]
            and account
            and account.lower() in (str(row["account_id"]), (row["account_name"] or "").lower())
        ]
        found += matching
        if not matching:
            problems.append(f"--account {account!r}: the warehouse has no such account")
    if problems:
        names = [str(row["account_name"] or row["account_id"]) for row in known if row["account_id"]]
        raise ConfigError([*problems, f"its accounts are: {', '.join(names)}" if names else "it has none yet"])
    return found


class _Source:
    """The queries on one warehouse, its first day and its accounts put in."""

    def __init__(self, connection: Connection, first_day: date) -> None:
        self._connection = connection
        self._is_sqlite = connection.dialect.name == "sqlite"
        self._words = {
            "of": "1 = 1",
            "since": f"'{first_day}'" if self._is_sqlite else f"DATE '{first_day}'",
            "moment": f"'{first_day} 00:00:00.000000'"
            if self._is_sqlite
            else f"TIMESTAMPTZ '{first_day} 00:00:00+00'",
        }

    def restrict_to(self, accounts: Iterable[UUID]) -> None:
        ids = [f"'{id_}'" if self._is_sqlite else f"CAST('{id_}' AS uuid)" for id_ in accounts]
        self._words["of"] = f"f.account_id IN ({', '.join(ids)})"

    def rows(self, name: str) -> list[Row]:
        query = QUERIES[name].format(**self._words).replace(":", r"\:")
        return [*self._connection.execute(text(query)).mappings()]


@dataclass
class _Coder:
    first_day: date
    hide: Callable[[str], str]
    texts: list[str | None] = field(default_factory=lambda: [None])
    folded: set[str | None] = field(default_factory=set)
    _text_numbers: dict[str, int] = field(default_factory=dict)
    _day_numbers: dict[date | str, int] = field(default_factory=dict)
    _check_numbers: dict[tuple[str | None, str], int] = field(default_factory=dict)

    def columns(self, rows: Sequence[Row]) -> Columns:
        """One list a column. account_id and check_key together become `check`."""
        if not rows:
            return {}
        names = list(rows[0])
        coded: Columns = {}
        if "check_key" in names:
            coded["check"] = [self._check(row["account_id"], row["check_key"]) for row in rows]
            names = [name for name in names if name not in ("account_id", "check_key")]
        for name in names:
            coded[name] = [*map(self._coder(name), [row[name] for row in rows])]
        return coded

    def checks(self, rows: Sequence[Row]) -> Columns:
        """The checks that any row named, in the order of their numbers."""
        by_key = {(_text(row["account_id"]), row["check_key"]): row for row in rows}
        found = [by_key[key] for key in self._check_numbers if key in by_key]
        if len(found) != len(self._check_numbers):
            raise AssertionError("a view named a check that v_checks does not know")
        names = list(rows[0]) if rows else []
        return {name: [*map(self._coder(name), [row[name] for row in found])] for name in names}

    def fold_branches(self, daily: Iterable[Row]) -> None:
        """From here on, the branches with few executions are one."""
        weight: Counter[str | None] = Counter()
        for row in daily:
            weight[row["branch_name"]] += int(row["executions"])
        kept = {name for name, _ in weight.most_common(BRANCHES_OF_MANY)}
        self.folded = weight.keys() - kept

    def folded_sums(self, rows: list[Row]) -> list[Row]:
        """Rows of counts, those of folded branches added up."""
        if not self.folded:
            return rows
        sums: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in rows:
            changed = dict(row)
            # Any of them stands for all.
            if row["branch_name"] in self.folded:
                changed["branch_name"] = next(iter(self.folded))
            key = tuple(value for name, value in changed.items() if name in _KEYS)
            if key not in sums:
                sums[key] = changed
                continue
            for name, value in changed.items():
                if name not in _KEYS:
                    sums[key][name] += value
        return list(sums.values())

    def text(self, value: object) -> int:
        """The place of a text or an id in `texts`."""
        return 0 if value is None else self._number(str(value))

    def _check(self, account: object, key: str | None) -> int:
        if key is None:
            return -1
        return self._check_numbers.setdefault((_text(account), key), len(self._check_numbers))

    def _coder(self, name: str) -> Callable[[Any], Any]:
        """What makes of a column's value what stands in the page."""
        if name == "day":
            return self._day_number
        if name == "branch_name" and self.folded:
            other = f"({len(self.folded)} other branches)"
            return lambda value: self.text(other if value in self.folded else value)
        if name.endswith("_at") or name in ("first_seen", "last_seen"):
            return lambda value: None if value is None else _seconds(value)
        nothing = None if name in _NUMBERS else 0

        def number_or_text(value: Any) -> Any:
            if isinstance(value, int):  # booleans, too
                return int(value)
            if isinstance(value, (float, Decimal)):
                return round(value) if "_ms" in name or isinstance(value, Decimal) else value
            return nothing if value is None else self._number(str(value))

        return number_or_text

    def _day_number(self, value: date | str) -> int:
        if value not in self._day_numbers:
            self._day_numbers[value] = (_day(value) - self.first_day).days
        return self._day_numbers[value]

    def _number(self, value: str) -> int:
        if value not in self._text_numbers:
            self._text_numbers[value] = len(self.texts)
            shown = self.hide(value)
            self.texts.append(shown if len(shown) <= LONGEST_TEXT else shown[:LONGEST_TEXT] + " …")
        return self._text_numbers[value]


_KEYS = frozenset(
    {"day", "account_id", "check_key", "branch_name", "environment", "verdict", "error_group_id", "run_location"}
)
# Columns that may be null and are no text: null stays null.
_NUMBERS = frozenset(
    {
        "hours_until_loss", "coverage", "time_to_fix_ms", "ratio", "duration_ms",
        "recent_p95_duration_ms", "baseline_p95_duration_ms",
    }
)  # fmt: skip
_ONLY_HERE = ("history_key", "test_session_id", "test_session_result_id")


def _newest_failures(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """The newest of each check, and the last one of each history, for it tells why a check is failing now."""
    found: list[Row] = []
    places: list[int] = []  # of a failure among those of its check, from 1; 0: the last of its history
    counts: Counter[tuple[Any, str]] = Counter()
    histories: set[str] = set()
    for row in rows:
        check = (row["account_id"], row["check_key"])
        counts[check] += 1
        is_last = row["history_key"] not in histories
        histories.add(row["history_key"])
        if is_last or counts[check] <= FAILURES_OF_A_CHECK[0]:
            found.append(row)
            places.append(0 if is_last else counts[check])
    for most in FAILURES_OF_A_CHECK:
        kept = [row for row, place in zip(found, places, strict=True) if place <= most]
        if len(kept) <= CUTS["failures"]:
            break
    return kept[: CUTS["failures"]], most


def _errors_of(
    failures: Sequence[Row], links: Iterable[Row], shown: Collection[Any], page: _Coder
) -> list[list[int]]:
    """The error groups of each failure; 0 stands for those that the page does not carry."""
    groups: dict[tuple[Any, Any], list[int]] = {
        (row["test_session_id"], row["test_session_result_id"]): [] for row in failures
    }
    for link in links:
        key = (link["test_session_id"], link["test_session_result_id"])
        if key in groups:
            number = page.text(link["error_group_id"] if link["error_group_id"] in shown else None)
            if number not in groups[key]:
                groups[key].append(number)
    return [groups[row["test_session_id"], row["test_session_result_id"]] for row in failures]


def _without(row: Row, names: Collection[str]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _day(value: date | str) -> date:
    if isinstance(value, str):
        return date.fromisoformat(value[:10])
    return value.date() if isinstance(value, datetime) else value


def _total(columns: Columns, name: str, days: int) -> int:
    """Of the days shown: a clock that was ahead may have left rows of later ones."""
    return sum(count for day, count in zip(columns.get("day", []), columns.get(name, []), strict=True) if day < days)


def _seconds(value: datetime | str) -> int:
    if isinstance(value, str):
        value = datetime.fromisoformat(value).replace(tzinfo=UTC)
    return math.floor(value.timestamp())  # rounded, the end of a day would be in the next one

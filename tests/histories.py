"""Histories of test sessions, and the views of design §5 once more: in plain Python, from the contract alone.

Nothing here is fast or clever. A view's SQL and its calculation were written apart from each other: where both come
to the same rows on both engines, for every history that hypothesis thinks of, both say what the contract says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from sqlalchemy import Connection

from etl.normalize import ResultRow
from etl.tables import check_executions, metadata

Row = dict[str, Any]

# The columns of each view, in their order: the key first, then what names the check, then what is said of it.
COLUMNS: dict[str, tuple[str, ...]] = {
    view: tuple(names.split())
    for view, names in {
        "v_test_session_summary": (
            "test_session_id account_id project_id name provider status environment branch_name commit_id started_at "
            "link executions passed failed undecided retry_flaky degraded retries error_groups retry_cost_ms "
            "duration_ms pass_rate verdict"
        ),
        "v_checks": (
            "account_id check_key check_id check_name check_type project_id first_started_at last_started_at "
            "last_verdict ambiguous"
        ),
        "v_check_daily": (
            "day account_id check_key branch_name environment run_location check_name check_type project_id "
            "executions decided passed failed errored retry_flaky degraded pass_rate retry_flaky_rate retry_cost_ms "
            "passed_duration_ms_sum passed_duration_n p50_duration_ms p95_duration_ms"
        ),
        "v_execution_history": (
            "test_session_id execution_no check_key history_key grouped_by test_session_result_id link check_id "
            "check_name check_type run_location status verdict retries is_retry_flaky is_degraded has_errors "
            "started_at stopped_at is_ambiguous duration_ms retry_cost_ms account_id project_id environment "
            "branch_name commit_id previous_status previous_started_at previous_commit_id is_flip is_new_failure"
        ),
        "v_failure_streaks": (
            "account_id check_key branch_name environment run_location check_name check_type first_failed_at "
            "last_failed_at recovered_at failures time_to_fix_ms first_failed_test_session_id "
            "first_failed_commit_id recovered_test_session_id recovered_commit_id link"
        ),
        "v_commit_flakiness": (
            "account_id check_key environment run_location commit_id check_name check_type passed failed "
            "is_commit_flaky first_started_at last_started_at"
        ),
        "v_flaky_checks": (
            "account_id check_key check_name check_type executions decided retry_flaky retry_flaky_rate commits "
            "commit_flaky commit_flaky_rate comparable flips flip_rate ambiguous"
        ),
        "v_error_occurrences": (
            "test_session_id test_session_result_id error_group_id cleaned_error_message account_id check_key "
            "check_name branch_name environment run_location commit_id started_at result_type verdict"
        ),
        "v_error_group_impact": (
            "error_group_id account_id cleaned_error_message occurrences test_sessions checks branches environments "
            "first_observed_at last_observed_at first_seen last_seen occurrences_7d is_new is_regression"
        ),
        "v_duration_regressions": (
            "account_id check_key environment run_location check_name check_type recent_p95_duration_ms "
            "baseline_p95_duration_ms recent_n baseline_n baseline_days ratio"
        ),
    }.items()
}

# What kind of value a column holds; a name means the same in every view.
_KINDS = {
    "id": (
        "test_session_id test_session_result_id error_group_id account_id project_id check_id "
        "first_failed_test_session_id recovered_test_session_id"
    ),
    "text": (
        "name provider status environment branch_name commit_id link verdict check_key check_name check_type "
        "last_verdict run_location history_key grouped_by previous_status previous_commit_id first_failed_commit_id "
        "recovered_commit_id cleaned_error_message result_type"
    ),
    "day": "day",
    "time": (
        "started_at stopped_at first_started_at last_started_at previous_started_at first_failed_at last_failed_at "
        "recovered_at first_observed_at last_observed_at first_seen last_seen"
    ),
    "int": (
        "executions passed failed undecided retry_flaky degraded retries error_groups decided errored "
        "passed_duration_n execution_no failures time_to_fix_ms commits commit_flaky comparable flips occurrences "
        "test_sessions checks branches environments occurrences_7d recent_n baseline_n baseline_days ambiguous"
    ),
    "float": (
        "retry_cost_ms duration_ms pass_rate retry_flaky_rate passed_duration_ms_sum p50_duration_ms p95_duration_ms "
        "commit_flaky_rate flip_rate recent_p95_duration_ms baseline_p95_duration_ms ratio"
    ),
    "bool": (
        "is_retry_flaky is_degraded has_errors is_flip is_new_failure is_commit_flaky is_new is_regression "
        "is_ambiguous"
    ),
}
KINDS: dict[str, str] = {name: kind for kind, names in _KINDS.items() for name in names.split()}


# --- base rows ----------------------------------------------------------------------------------------------


@dataclass(repr=False)
class History:
    """The rows of the tables that the views read; a column that a row does not name is null."""

    test_sessions: list[Row] = field(default_factory=list)
    test_session_results: list[Row] = field(default_factory=list)
    check_executions: list[Row] = field(default_factory=list)
    error_groups: list[Row] = field(default_factory=list)
    test_session_error_groups: list[Row] = field(default_factory=list)
    test_session_result_error_groups: list[Row] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<History of {len(self.test_sessions)} test sessions>"  # hypothesis warns of what is longer

    def described(self) -> str:
        """Every row, a line each, without what is null."""
        lines = []
        for one in fields(self):
            lines.append(f"{one.name}:")
            for row in getattr(self, one.name):
                shown = [f"{name}={value}" for name, value in row.items() if value is not None]
                lines.append("    " + ", ".join(shown))
        return "\n".join(lines)

    def insert(self, connection: Connection, *, but: Container[str] = ()) -> None:
        """Insert everything (`but` what these tables hold); what is referred to comes first."""
        names = {one.name for one in fields(self) if one.name not in but}
        for table in metadata.sorted_tables:
            found = getattr(self, table.name) if table.name in names else []
            if found:
                nulls: Row = dict.fromkeys(table.columns.keys())
                connection.execute(table.insert(), [nulls | row for row in found])

    def and_also(self, other: History) -> History:
        """The rows of both."""
        return History(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    def of(self, ids: Container[str]) -> History:
        """Only these test sessions, and all error groups."""

        def kept(rows: list[Row]) -> list[Row]:
            return [row for row in rows if row.get("test_session_id", "") in ids or "test_session_id" not in row]

        return History(**{one.name: kept(getattr(self, one.name)) for one in fields(self)})

    def moved(self, days: int) -> History:
        """The same, so many days later."""
        return History(**{one.name: moved(getattr(self, one.name), days) for one in fields(self)})


def moved(rows: Iterable[Row], days: int) -> list[Row]:
    """The same rows, with every time and every day so many days later."""
    by = timedelta(days=days)
    return [{name: value + by if isinstance(value, date) else value for name, value in row.items()} for row in rows]


# --- words of the contract ----------------------------------------------------------------------------------


def _in_order(executions: Iterable[Row]) -> list[Row]:
    """By started_at, test_session_id, execution_no."""
    return sorted(executions, key=lambda row: (row["started_at"], row["test_session_id"], row["execution_no"]))


def _grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by what they say in some columns; null and '' are two values."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def _decided(executions: Iterable[Row]) -> list[Row]:
    return [row for row in executions if row["verdict"] is not None]


def _passed(executions: Iterable[Row]) -> list[Row]:
    return [row for row in executions if row["verdict"] == "PASSED"]


def _failed(executions: Iterable[Row]) -> list[Row]:
    return [row for row in executions if row["verdict"] == "FAILED"]


def _certain(executions: Iterable[Row]) -> list[Row]:
    return [row for row in executions if not row["is_ambiguous"]]


def _rate(part: int, whole: int) -> float | None:
    return None if whole == 0 else part / whole


def _day(moment: datetime) -> date:
    """The UTC day."""
    return moment.astimezone(UTC).date()


def _in_last(days: int, moment: datetime, today: date) -> bool:
    """In the last N days: the UTC days today-(N-1) to today. What lies in the future is not in them."""
    return today - timedelta(days=days - 1) <= _day(moment) <= today


def _percentile(percent: int, values: Sequence[float]) -> float | None:
    """Nearest-rank; None of nothing."""
    if not values:
        return None
    rank = (percent * len(values) + 99) // 100
    return sorted(values)[rank - 1]


def _passed_durations(executions: Iterable[Row]) -> list[float]:
    return [row["duration_ms"] for row in _passed(executions) if row["duration_ms"] is not None]


def _whole_milliseconds(moment: datetime) -> int:
    """Since 1970, floored."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _milliseconds(start: datetime, stop: datetime | None) -> float | None:
    return None if stop is None else (stop - start) / timedelta(milliseconds=1)


def _names_of_checks(history: History) -> dict[tuple[Any, ...], Row]:
    """check_name and check_type of each check's newest execution, and project_id of the newest that has one."""
    names = {}
    for check, executions in _grouped(history.check_executions, "account_id", "check_key").items():
        newest = _in_order(executions)[-1]
        projects = [row["project_id"] for row in _in_order(executions) if row["project_id"] is not None]
        names[check] = {
            "check_name": newest["check_name"],
            "check_type": newest["check_type"],
            "project_id": projects[-1] if projects else None,
        }
    return names


# --- executions ---------------------------------------------------------------------------------------------


def executions_of(results: Sequence[Row], session: Row) -> list[Row]:
    """Fold the result rows of one session into rows of check_executions, and set each result's execution_no."""
    by_check: dict[str, list[Row]] = {}
    for result in results:
        unnamed = f"{session.get('project_id') or '-'}:{result['check_type'] or ''}:{result['check_name'] or ''}"
        by_check.setdefault(result["check_id"] or unnamed, []).append(result)
    executions: list[Row] = []
    for check_key, rows in by_check.items():
        executions += [{"check_key": check_key, **folded} for folded in _folded(rows, session)]
    executions.sort(key=lambda execution: min(row["position"] for row in execution["rows"]))
    _mark_twins(executions)
    return [_execution_row(number, execution, session) for number, execution in enumerate(executions, 1)]


def _folded(rows: list[Row], session: Row) -> list[Row]:
    """Rules 0 to 3, for the rows of one check; rule 4 is `_joined`."""
    has_no_types = all(row["result_type"] is None for row in rows)

    def execution(members: list[Row], grouped_by: str) -> Row:
        finals = [row for row in members if row["result_type"] == "FINAL"]
        if has_no_types and session["is_final"]:
            finals = members
        shown = finals[-1] if finals else members[-1]
        return {"rows": members, "grouped_by": grouped_by, "has_final": bool(finals), "shown": shown}

    have_times = all(row["started_at"] is not None for row in rows)

    def in_order(some: Iterable[Row]) -> list[Row]:
        return sorted(some, key=lambda row: (row["started_at"] if have_times else TIMELESS, row["position"]))

    if all(row["sequence_id"] for row in rows):
        return [execution(some, "sequence") for some in _grouped(in_order(rows), "sequence_id").values()]
    executions = []
    for members in _grouped(in_order(rows), "run_location").values():
        collected: list[Row] = []
        for row in members:
            collected.append(row)
            if row["result_type"] == "FINAL" or (has_no_types and session["is_final"]):
                executions.append(execution(collected, "inferred"))
                collected = []
        if collected:
            executions.append(execution(collected, "inferred"))
    return _joined(executions, lambda rows: execution(rows, "inferred"))


TIMELESS = datetime(1, 1, 1, tzinfo=UTC)


def _joined(executions: list[Row], execution: Callable[[list[Row]], Row]) -> list[Row]:
    """Rule 4: attempts that are left open go on in another location."""

    def place(one: Row) -> tuple[Any, ...]:
        location = one["shown"]["run_location"]
        return one["rows"][0]["started_at"], location is not None, location or ""

    def end(one: Row) -> datetime:
        last = one["rows"][-1]
        moment: datetime = last["stopped_at"] or last["started_at"]
        return moment

    waiting = [
        one
        for one in executions
        if all(row["result_type"] == "ATTEMPT" and row["started_at"] is not None for row in one["rows"])
    ]
    now = list(executions)
    for first_id in [
        one["rows"][0]["test_session_result_id"]
        for one in sorted(waiting, key=lambda one: (end(one), place(one)), reverse=True)
    ]:
        # What was joined by another one meanwhile is found by a row that it still holds.
        one = next(it for it in now if first_id in [row["test_session_result_id"] for row in it["rows"]])
        following = [
            other
            for other in now
            if other["rows"][0]["started_at"] is not None
            and other["rows"][0]["started_at"] >= end(one)
            and other["shown"]["run_location"] != one["shown"]["run_location"]
        ]
        if following:
            target = min(following, key=place)
            together = execution(one["rows"] + target["rows"])
            now = [together if it is target else it for it in now if it is not one]
    return now


def _mark_twins(executions: list[Row]) -> None:
    for one in executions:
        one["is_ambiguous"] = False
        one["place"] = (one["check_key"], one["shown"]["run_location"])
    for twins in _grouped([one for one in executions if one["shown"]["check_id"] is None], "place").values():
        paths = [one["shown"]["file_path"] for one in twins]
        if len(twins) == 1:
            continue
        if all(paths) and len(set(paths)) == len(paths):
            for one, path in zip(twins, paths, strict=True):
                one["check_key"] = f"{one['check_key']}:{path}"
        else:
            for one in twins:
                one["is_ambiguous"] = True


VERDICTS = {"PASSED": "PASSED", "DEGRADED": "PASSED", "FAILED": "FAILED", "TIMED_OUT": "FAILED"}


def _execution_row(execution_no: int, execution: Row, session: Row) -> Row:
    members, shown = execution["rows"], execution["shown"]
    final = shown if execution["has_final"] else None
    attempts = [row for row in members if row["result_type"] == "ATTEMPT"]
    verdict = VERDICTS.get(final["status"]) if final else None
    copied = ("test_session_id", "account_id", "project_id", "environment", "branch_name", "commit_id")
    row: Row = {column: session.get(column) for column in copied}
    shown_columns = "test_session_result_id link check_id check_name check_type run_location status has_errors"
    row |= {column: shown[column] for column in shown_columns.split()}
    row["execution_no"] = execution_no
    row["check_key"] = execution["check_key"]
    parts = ("account_id", "check_key", "branch_name", "environment", "run_location")
    text = json.dumps([row[part] for part in parts], ensure_ascii=False, separators=(",", ":"))
    row["history_key"] = sha256(text.encode()).hexdigest()
    row["grouped_by"] = execution["grouped_by"]
    row["verdict"] = verdict
    row["retries"] = len(attempts)
    has_failed = any(VERDICTS.get(attempt["status"]) == "FAILED" for attempt in attempts)
    row["is_retry_flaky"] = has_failed and verdict == "PASSED"
    row["is_degraded"] = True if final and final["status"] == "DEGRADED" else shown["is_degraded"]
    started = [member["started_at"] for member in members if member["started_at"] is not None]
    row["started_at"] = min(started, default=session["started_at"])
    row["stopped_at"] = final["stopped_at"] if final else None
    row["is_ambiguous"] = execution["is_ambiguous"]
    has_times = final is not None and final["started_at"] is not None
    row["duration_ms"] = _milliseconds(final["started_at"], final["stopped_at"]) if final and has_times else None
    row["retry_cost_ms"] = math.fsum(
        _milliseconds(attempt["started_at"], attempt["stopped_at"]) or 0.0
        for attempt in attempts
        if attempt["started_at"] is not None
    )
    for member in members:
        member["execution_no"] = execution_no
    return row


# --- the views ----------------------------------------------------------------------------------------------


def v_test_session_summary(history: History, today: date) -> list[Row]:
    """A row a test session."""
    rows = []
    for session in history.test_sessions:
        executions = [row for row in history.check_executions if row["test_session_id"] == session["test_session_id"]]
        links = [
            row for row in history.test_session_error_groups if row["test_session_id"] == session["test_session_id"]
        ]
        copied = (
            "test_session_id account_id project_id name provider status environment branch_name commit_id "
            "started_at link"
        )
        row: Row = {column: session.get(column) for column in copied.split()}
        row["executions"] = len(executions)
        row["passed"] = len(_passed(executions))
        row["failed"] = len(_failed(executions))
        row["undecided"] = len(executions) - len(_decided(executions))
        row["retry_flaky"] = len([one for one in _decided(executions) if one["is_retry_flaky"]])
        row["degraded"] = len([one for one in _decided(executions) if one["is_degraded"]])
        row["retries"] = sum(one["retries"] for one in executions)
        row["error_groups"] = len(links)
        row["retry_cost_ms"] = math.fsum(one["retry_cost_ms"] for one in executions)
        row["duration_ms"] = _milliseconds(session["started_at"], session.get("stopped_at"))
        row["pass_rate"] = _rate(row["passed"], len(_decided(executions)))
        row["verdict"] = "FAILED" if _failed(executions) else session["status"]
        rows.append(row)
    return rows


def v_checks(history: History, today: date) -> list[Row]:
    """A row an (account_id, check_key)."""
    names = _names_of_checks(history)
    rows = []
    for check, executions in _grouped(history.check_executions, "account_id", "check_key").items():
        newest = _in_order(executions)[-1]
        decided = _in_order(_decided(executions))
        rows.append(
            {
                "account_id": newest["account_id"],
                "check_key": newest["check_key"],
                "check_id": newest["check_id"],
                "check_name": newest["check_name"],
                "check_type": newest["check_type"],
                "project_id": names[check]["project_id"],
                "first_started_at": min(row["started_at"] for row in executions),
                "last_started_at": newest["started_at"],
                "last_verdict": decided[-1]["verdict"] if decided else None,
                "ambiguous": len(executions) - len(_certain(executions)),
            }
        )
    return rows


def v_check_daily(history: History, today: date) -> list[Row]:
    """A row a (UTC day of started_at, account_id, check_key, branch_name, environment, run_location)."""
    names = _names_of_checks(history)
    dated = [row | {"day": _day(row["started_at"])} for row in history.check_executions]
    key = ("day", "account_id", "check_key", "branch_name", "environment", "run_location")
    rows = []
    for values, executions in _grouped(dated, *key).items():
        row: Row = dict(zip(key, values, strict=True))
        row |= names[row["account_id"], row["check_key"]]
        decided, durations = _decided(executions), _passed_durations(executions)
        row["executions"] = len(executions)
        row["decided"] = len(decided)
        row["passed"] = len(_passed(executions))
        row["failed"] = len(_failed(executions))
        row["errored"] = len([one for one in _failed(executions) if one["has_errors"]])
        row["retry_flaky"] = len([one for one in decided if one["is_retry_flaky"]])
        row["degraded"] = len([one for one in decided if one["is_degraded"]])
        row["pass_rate"] = _rate(row["passed"], row["decided"])
        row["retry_flaky_rate"] = _rate(row["retry_flaky"], row["decided"])
        row["retry_cost_ms"] = math.fsum(one["retry_cost_ms"] for one in executions)
        row["passed_duration_ms_sum"] = math.fsum(durations)
        row["passed_duration_n"] = len(durations)
        row["p50_duration_ms"] = _percentile(50, durations)
        row["p95_duration_ms"] = _percentile(95, durations)
        rows.append(row)
    return rows


def v_execution_history(history: History, today: date) -> list[Row]:
    """A row a decided execution, each after the decided one before it in its history."""
    rows = []
    for executions in _grouped(_certain(_decided(history.check_executions)), "history_key").values():
        previous: Row | None = None
        for execution in _in_order(executions):
            row: Row = {column.name: execution.get(column.name) for column in check_executions.columns}
            row["previous_status"] = previous["status"] if previous else None
            row["previous_started_at"] = previous["started_at"] if previous else None
            row["previous_commit_id"] = previous["commit_id"] if previous else None
            row["is_flip"] = previous is not None and previous["verdict"] != execution["verdict"]
            row["is_new_failure"] = (
                previous is not None and previous["verdict"] == "PASSED" and execution["verdict"] == "FAILED"
            )
            rows.append(row)
            previous = execution
    return rows


def v_failure_streaks(history: History, today: date) -> list[Row]:
    """A row a streak of FAILED within a history: until the next PASSED; what is undecided does not end it."""
    names = _names_of_checks(history)
    rows = []
    for executions in _grouped(_certain(_decided(history.check_executions)), "history_key").values():
        streak: list[Row] = []
        for execution in [*_in_order(executions), None]:
            if execution is not None and execution["verdict"] == "FAILED":
                streak.append(execution)
            elif streak:
                rows.append(_streak(streak, execution, names))
                streak = []
    return rows


def _streak(failures: list[Row], recovery: Row | None, names: dict[tuple[Any, ...], Row]) -> Row:
    first, last = failures[0], failures[-1]
    name = names[first["account_id"], first["check_key"]]
    return {
        "account_id": first["account_id"],
        "check_key": first["check_key"],
        "branch_name": first["branch_name"],
        "environment": first["environment"],
        "run_location": first["run_location"],
        "check_name": name["check_name"],
        "check_type": name["check_type"],
        "first_failed_at": first["started_at"],
        "last_failed_at": last["started_at"],
        "recovered_at": recovery["started_at"] if recovery else None,
        "failures": len(failures),
        "time_to_fix_ms": (
            _whole_milliseconds(recovery["started_at"]) - _whole_milliseconds(first["started_at"])
            if recovery
            else None
        ),
        "first_failed_test_session_id": first["test_session_id"],
        "first_failed_commit_id": first["commit_id"],
        "recovered_test_session_id": recovery["test_session_id"] if recovery else None,
        "recovered_commit_id": recovery["commit_id"] if recovery else None,
        "link": last.get("link"),
    }


def v_commit_flakiness(history: History, today: date) -> list[Row]:
    """A row an (account_id, check_key, environment, run_location, commit_id) with a commit."""
    names = _names_of_checks(history)
    with_commit = [row for row in _certain(history.check_executions) if row["commit_id"] is not None]
    key = ("account_id", "check_key", "environment", "run_location", "commit_id")
    rows = []
    for values, executions in _grouped(with_commit, *key).items():
        row: Row = dict(zip(key, values, strict=True))
        row["check_name"] = names[row["account_id"], row["check_key"]]["check_name"]
        row["check_type"] = names[row["account_id"], row["check_key"]]["check_type"]
        row["passed"] = len(_passed(executions))
        row["failed"] = len(_failed(executions))
        row["is_commit_flaky"] = row["passed"] > 0 and row["failed"] > 0
        row["first_started_at"] = min(one["started_at"] for one in executions)
        row["last_started_at"] = max(one["started_at"] for one in executions)
        rows.append(row)
    return rows


def v_flaky_checks(history: History, today: date) -> list[Row]:
    """A row an (account_id, check_key) that ran in the last 30 days; every column counts executions of these."""
    names = _names_of_checks(history)
    executed = [row for row in history.check_executions if _in_last(30, row["started_at"], today)]
    followed = [row for row in v_execution_history(history, today) if _in_last(30, row["started_at"], today)]
    rows = []
    for check, executions in _grouped(executed, "account_id", "check_key").items():
        decided = _decided(executions)
        commits, commit_flaky = set(), set()
        for place, tries in _grouped(_certain(decided), "environment", "run_location", "commit_id").items():
            commit = place[-1]
            if commit is not None and len(tries) >= 2:
                commits.add(commit)
                if _passed(tries) and _failed(tries):
                    commit_flaky.add(commit)
        comparable = [
            row
            for row in followed
            if (row["account_id"], row["check_key"]) == check and row["previous_status"] is not None
        ]
        flips = [row for row in comparable if row["is_flip"]]
        retry_flaky = [row for row in decided if row["is_retry_flaky"]]
        rows.append(
            {
                "account_id": check[0],
                "check_key": check[1],
                "check_name": names[check]["check_name"],
                "check_type": names[check]["check_type"],
                "executions": len(executions),
                "decided": len(decided),
                "retry_flaky": len(retry_flaky),
                "retry_flaky_rate": _rate(len(retry_flaky), len(decided)),
                "commits": len(commits),
                "commit_flaky": len(commit_flaky),
                "commit_flaky_rate": _rate(len(commit_flaky), len(commits)),
                "comparable": len(comparable),
                "flips": len(flips),
                "flip_rate": _rate(len(flips), len(comparable)),
                "ambiguous": len(executions) - len(_certain(executions)),
            }
        )
    return rows


def v_error_occurrences(history: History, today: date) -> list[Row]:
    """A row a link of a result to an error group."""
    sessions = {row["test_session_id"]: row for row in history.test_sessions}
    results = {(row["test_session_id"], row["test_session_result_id"]): row for row in history.test_session_results}
    executions = {(row["test_session_id"], row["execution_no"]): row for row in history.check_executions}
    groups = {row["error_group_id"]: row for row in history.error_groups}
    rows = []
    for link in history.test_session_result_error_groups:
        session = sessions[link["test_session_id"]]
        result = results[link["test_session_id"], link["test_session_result_id"]]
        execution = None
        if result["execution_no"] is not None:
            execution = executions[link["test_session_id"], result["execution_no"]]
        rows.append(
            {
                "test_session_id": link["test_session_id"],
                "test_session_result_id": link["test_session_result_id"],
                "error_group_id": link["error_group_id"],
                "cleaned_error_message": groups[link["error_group_id"]].get("cleaned_error_message"),
                "account_id": session.get("account_id"),
                "check_key": execution["check_key"] if execution else None,
                "check_name": result.get("check_name"),
                "branch_name": session.get("branch_name"),
                "environment": session.get("environment"),
                "run_location": result.get("run_location"),
                "commit_id": session.get("commit_id"),
                "started_at": result.get("started_at") or session["started_at"],
                "result_type": result.get("result_type"),
                "verdict": execution["verdict"] if execution else None,
            }
        )
    return rows


def v_error_group_impact(history: History, today: date) -> list[Row]:
    """A row an error group, also one that no result is linked to."""
    rows = []
    for group in history.error_groups:
        occurrences = [
            row for row in v_error_occurrences(history, today) if row["error_group_id"] == group["error_group_id"]
        ]
        moments = sorted(row["started_at"] for row in occurrences)
        recent = [moment for moment in moments if _in_last(7, moment, today)]
        before = [moment for moment in moments if _day(moment) < today - timedelta(days=6)]
        checks = {(row["account_id"], row["check_key"]) for row in occurrences if row["check_key"] is not None}
        branches = {row["branch_name"] for row in occurrences} - {None}
        environments = {row["environment"] for row in occurrences} - {None}
        rows.append(
            {
                "error_group_id": group["error_group_id"],
                "account_id": group.get("account_id"),
                "cleaned_error_message": group.get("cleaned_error_message"),
                "occurrences": len(occurrences),
                "test_sessions": len({row["test_session_id"] for row in occurrences}),
                "checks": len(checks),
                "branches": len(branches),
                "environments": len(environments),
                "first_observed_at": moments[0] if moments else None,
                "last_observed_at": moments[-1] if moments else None,
                "first_seen": group.get("first_seen"),
                "last_seen": group.get("last_seen"),
                "occurrences_7d": len(recent),
                "is_new": bool(moments) and _in_last(7, moments[0], today),
                # Between two of the last 7 days there are never 7 days without: the gap ends with their first one.
                "is_regression": bool(recent and before) and recent[0] - before[-1] >= timedelta(days=7),
            }
        )
    return rows


def v_duration_regressions(history: History, today: date) -> list[Row]:
    """A row an (account_id, check_key, environment, run_location) with a duration in the last 14 days."""
    names = _names_of_checks(history)
    key = ("account_id", "check_key", "environment", "run_location")
    rows = []
    for values, executions in _grouped(_certain(history.check_executions), *key).items():
        row: Row = dict(zip(key, values, strict=True))
        row["check_name"] = names[row["account_id"], row["check_key"]]["check_name"]
        row["check_type"] = names[row["account_id"], row["check_key"]]["check_type"]
        recent = _passed_durations(one for one in executions if _in_last(7, one["started_at"], today))
        baseline = []  # the durations of each day that has some
        for ago in range(7, 14):
            day = today - timedelta(days=ago)
            durations = _passed_durations(one for one in executions if _day(one["started_at"]) == day)
            if durations:
                baseline.append(durations)
        if not recent and not baseline:
            continue
        recent_p95 = _percentile(95, recent)
        highest = [p95 for durations in baseline if (p95 := _percentile(95, durations)) is not None]
        baseline_p95 = max(highest) if highest else None
        row["recent_p95_duration_ms"] = recent_p95
        row["baseline_p95_duration_ms"] = baseline_p95
        row["recent_n"] = len(recent)
        row["baseline_n"] = sum(len(durations) for durations in baseline)
        row["baseline_days"] = len(baseline)
        row["ratio"] = None if recent_p95 is None or not baseline_p95 else recent_p95 / baseline_p95
        rows.append(row)
    return rows


CALCULATIONS: dict[str, Callable[[History, date], list[Row]]] = {
    "v_test_session_summary": v_test_session_summary,
    "v_checks": v_checks,
    "v_check_daily": v_check_daily,
    "v_execution_history": v_execution_history,
    "v_failure_streaks": v_failure_streaks,
    "v_commit_flakiness": v_commit_flakiness,
    "v_flaky_checks": v_flaky_checks,
    "v_error_occurrences": v_error_occurrences,
    "v_error_group_impact": v_error_group_impact,
    "v_duration_regressions": v_duration_regressions,
}


# --- histories to try ---------------------------------------------------------------------------------------

TODAY = date(2026, 11, 15)  # of the histories that are generated; `moved` takes them to any other


def id_(number: int) -> str:
    """An id; its first digits tell it from others."""
    return str(UUID(int=number << 96))


ACCOUNTS = (None, id_(0xA1), id_(0xA2))
PROJECTS = (None, id_(0xB1), id_(0xB2))
# check_id, check_type, check_name: with ids (one of them renamed, and of another type), and in the run only.
CHECKS = (
    (id_(0xC1), "API", "login"),
    (id_(0xC1), "API", "login, renamed"),
    (id_(0xC1), "BROWSER", None),
    (id_(0xC2), "API", "login"),
    (None, "API", "login"),
    (None, "API", ""),
    (None, "API", None),
    (None, None, None),
)
BRANCHES = (None, "", "main", "feature")
ENVIRONMENTS = (None, "", "production")
LOCATIONS = (None, "", "eu-west-1")
COMMITS = (None, "", "c0ffee", "decade", "facade")
GROUPS = tuple(id_(number) for number in range(0xE1, 0xE6))
SEQUENCES = (None, None, None, id_(0x51), id_(0x52))
# Around the edges of every window, today in the middle of what is common, and the future.
DAYS = (*range(-16, 3), -40, -31, -30, -29, -28, -8, -7, -6, -5, -1, 0, 0)
CLOCK = tuple(
    timedelta(microseconds=microseconds)
    for microseconds in (
        0,
        1,
        500,
        999_500,
        999_999,
        12 * 3_600_000_000,
        12 * 3_600_000_000 + 999_499,
        12 * 3_600_000_000 + 999_500,
        24 * 3_600_000_000 - 1,
        24 * 3_600_000_000 - 500,
    )
)
# Microseconds; None: it never stopped. One ran backwards, because Checkly's clocks may.
DURATIONS = (None, 0, 1, 125, 499, 500, 999, 999_500, 1_000_000, 1_000_000, 2_500_333, 61_000_001, -1_001)


class _Choices:
    """What hypothesis chose for one row: a byte a choice. Zeros, the simplest, choose the first of every pool."""

    def __init__(self, chosen: bytes) -> None:
        self._left = iter(chosen)

    def of(self, pool: Sequence[Any]) -> Any:
        return pool[next(self._left) % len(pool)]

    def some_of(self, pool: Sequence[Any], most: int) -> list[Any]:
        """At least one, and the same more than once: mostly little, so that much meets in one place."""
        return [self.of(pool) for _ in range(self.of(range(1, most + 1)))]

    def subset_of(self, pool: Sequence[Any]) -> list[Any]:
        """Two in any order that are not the same, or one, or mostly none."""
        return list(dict.fromkeys(self.of(pool) for _ in range(self.of((0, 0, 0, 1, 1, 2))))) if pool else []

    def number(self) -> int:
        """Below 65,536."""
        return next(self._left) * 256 + next(self._left)

    def microseconds(self) -> int | None:
        of_pool: int | None = self.of(DURATIONS)
        number = self.number()
        return number * 250 if self.of((False, False, True)) else of_pool


class _Pools:
    """What the rows of one history choose from."""

    def __init__(self, choices: _Choices) -> None:
        self.accounts = choices.some_of(ACCOUNTS, 2)
        self.projects = choices.some_of(PROJECTS, 2)
        self.checks = choices.some_of(CHECKS, 3)
        self.branches = choices.some_of(BRANCHES, 2)
        self.environments = choices.some_of(ENVIRONMENTS, 2)
        self.locations = choices.some_of(LOCATIONS, 2)
        self.commits = choices.some_of(COMMITS, 3)
        self.days = choices.some_of(DAYS, 8)
        self.groups = list(dict.fromkeys(choices.some_of(GROUPS, 3)))

    def moment(self, choices: _Choices) -> datetime:
        """Of one of the days, at one of the times."""
        midnight = datetime.combine(TODAY + timedelta(days=choices.of(self.days)), time(), UTC)
        since: timedelta = choices.of(CLOCK)
        return midnight + since


def _session(choices: _Choices, pools: _Pools, number: int) -> Row:
    started_at, microseconds = pools.moment(choices), choices.microseconds()
    status = choices.of(("PASSED", "FAILED", "CANCELLED", "RUNNING", "TIMED_OUT"))
    return {
        # Ids in any order: of two that started together the greater one is the later.
        "test_session_id": id_(choices.number() << 16 | number),
        "account_id": choices.of(pools.accounts),
        "project_id": choices.of(pools.projects),
        "name": choices.of((None, "", "nightly")),
        "provider": choices.of((None, "GITHUB")),
        "status": status,
        "is_final": status != "RUNNING",
        "environment": choices.of(pools.environments),
        "branch_name": choices.of(pools.branches),
        "commit_id": choices.of(pools.commits),
        "started_at": started_at,
        "stopped_at": None if microseconds is None else started_at + timedelta(microseconds=microseconds),
        "link": choices.of((None, "https://app.checklyhq.com")),
        "first_exported_at": started_at,
        "exported_at": started_at,
        "payload_sha256": "",
    }


def _results(choices: _Choices, pools: _Pools, session: Row, position: int) -> list[ResultRow]:
    """Results as a payload lists them: tries that came before, then the last one, which need not be FINAL."""
    check_id, check_type, check_name = choices.of(pools.checks)
    run_location, sequence_id = choices.of(pools.locations), choices.of(SEQUENCES)
    file_path = choices.of((None, "a.spec.ts", "b.spec.ts"))
    tries = [
        ("ATTEMPT", choices.of(("FAILED", "FAILED", "TIMED_OUT", "CANCELLED")))
        for _ in range(choices.of((0, 0, 0, 1, 2)))
    ]
    last_type = choices.of(("FINAL",) * 9 + ("ATTEMPT", "PENDING", None))
    last_status = choices.of(("PASSED",) * 5 + ("FAILED",) * 4 + ("DEGRADED", "TIMED_OUT", "CANCELLED", "RUNNING"))
    results: list[ResultRow] = []
    for result_type, status in [*tries, (last_type, last_status)]:
        some = pools.moment(choices)
        started_at = choices.of((session["started_at"], some, some, some, None))
        microseconds = choices.microseconds()
        stopped_at = None
        if microseconds is not None:
            stopped_at = (started_at or session["started_at"]) + timedelta(microseconds=microseconds)
        results.append(
            ResultRow(
                test_session_id=session["test_session_id"],
                # Unlike positions, in no order.
                test_session_result_id=id_(choices.number() << 16 | (position + len(results))),
                position=position + len(results),
                execution_no=None,
                check_id=check_id,
                check_type=check_type,
                check_name=check_name,
                run_location=run_location,
                result_type=result_type,
                status=status,
                has_errors=choices.of((None, False, True)),
                has_failures=None,
                is_degraded=choices.of((None, False, True)),
                is_aborted=None,
                response_time_ms=None,
                started_at=started_at,
                stopped_at=stopped_at,
                link=f"https://app.checklyhq.com/{session['test_session_id']}/{position + len(results)}",
                sequence_id=sequence_id,
                file_path=file_path,
            )
        )
    return results


def _error_group(choices: _Choices, error_group_id: str) -> Row:
    """With its document, or known by id only."""
    row: Row = {"error_group_id": error_group_id, "account_id": choices.of(ACCOUNTS)}
    if choices.of((False, True)):
        first_seen = datetime.combine(TODAY, time(12), UTC) - timedelta(days=choices.of(range(40)))
        row["cleaned_error_message"] = choices.of((None, "", "timeout"))
        row["first_seen"] = first_seen
        row["last_seen"] = choices.of((None, first_seen, first_seen + timedelta(days=3, microseconds=1)))
        row["fetched_at"] = first_seen
    return row


def _history(of_all: bytes, of_sessions: list[tuple[bytes, list[bytes]]]) -> History:
    """A history as the export may leave it, as of TODAY."""
    choices = _Choices(of_all)
    pools, history = _Pools(choices), History()
    history.error_groups = [_error_group(choices, error_group_id) for error_group_id in pools.groups]
    for number, (of_session, of_results) in enumerate(of_sessions):
        choices = _Choices(of_session)
        session = _session(choices, pools, number)
        of_session_only = choices.subset_of(pools.groups)
        results: list[ResultRow] = []
        kept: list[ResultRow] = []  # that only an earlier RUNNING payload held
        links: list[tuple[str, str]] = []
        for of_result in of_results:
            choices = _Choices(of_result)
            is_kept = choices.of((False,) * 9 + (True,))
            made = _results(choices, pools, session, len(results) + len(kept) + 1)
            (kept if is_kept else results).extend(made)
            links += [
                (result.test_session_result_id, error_group_id)
                for result in made
                for error_group_id in choices.subset_of(pools.groups)
            ]
        test_session_id = session["test_session_id"]
        history.test_sessions.append(session)
        rows = [dict(row) for row in results]
        history.check_executions += executions_of(rows, session)
        history.test_session_results += [*rows, *(dict(row) for row in kept)]
        history.test_session_error_groups += [
            {"test_session_id": test_session_id, "error_group_id": error_group_id}
            for error_group_id in sorted({group for _, group in links} | set(of_session_only))
        ]
        history.test_session_result_error_groups += [
            {
                "test_session_id": test_session_id,
                "test_session_result_id": test_session_result_id,
                "error_group_id": error_group_id,
            }
            for test_session_result_id, error_group_id in links
        ]
    return history


def _bytes(number: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=number, max_size=number)


HISTORIES = st.builds(
    _history, _bytes(80), st.lists(st.tuples(_bytes(40), st.lists(_bytes(60), max_size=10)), max_size=12)
)

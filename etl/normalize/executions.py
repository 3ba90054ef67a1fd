"""Executions: the results of one test session, folded. An execution is a FINAL with its attempts.

Checkly documents no order of `results`, a retry may run in another location, and checks without an id share names.
The rules are in `docs/decisions/0015-folding.md`. A result is folded with the others of its check only, and the
order of the document decides nothing where results have times.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from operator import attrgetter
from typing import Any

import msgspec

from etl.normalize.rows import ExecutionRow, ResultRow
from etl.normalize.values import milliseconds

PASSED_STATUSES = frozenset({"PASSED", "DEGRADED"})  # of a FINAL, or of a single attempt
FAILED_STATUSES = frozenset({"FAILED", "TIMED_OUT"})

_Place = tuple[datetime, bool, str]


@dataclass(slots=True, eq=False)
class _Execution:
    """Result rows that belong together, in the order in which they ran.

    `shown` stands for all of them: the FINAL (the last one, if there are several), else the last row.
    """

    check_key: str
    grouped_by: str
    rows: list[ResultRow]
    shown: ResultRow
    has_final: bool
    is_ambiguous: bool = False

    @property
    def position(self) -> int:
        """The least position of its rows."""
        return self.rows[0].position if len(self.rows) == 1 else min(row.position for row in self.rows)

    @property
    def place(self) -> _Place:
        """When it began and where: a sort key. Only of an execution whose first row has a start."""
        location = self.shown.run_location
        return _start(self.rows[0]), location is not None, location or ""


def normalize_executions(results: Sequence[ResultRow], test_session: Mapping[str, Any]) -> list[ExecutionRow]:
    """Return the executions of result rows, and set each row's `execution_no`.

    `test_session` holds the columns of test_sessions. Works for rows that are stored already, too: their session's
    columns, which executions copy, may have changed, and details that were read since tell their sequences.
    """
    executions = [
        execution
        for check_key, rows in _by_check(results, test_session.get("project_id")).items()
        for execution in _fold(check_key, rows, is_final=bool(test_session.get("is_final")))
    ]
    executions.sort(key=attrgetter("position"))
    _tell_twins_apart(executions)
    for execution_no, execution in enumerate(executions, 1):
        for row in execution.rows:
            row.execution_no = execution_no
    return [_execution_row(number, execution, test_session) for number, execution in enumerate(executions, 1)]


def results_in_doubt(results: Sequence[ResultRow], executions: Iterable[ExecutionRow]) -> set[str]:
    """Return the ids of all results of checks that have an ATTEMPT, or twins.

    How these are grouped is certain only with the sequence and the file path that each result's own document tells;
    one result without them leaves its whole check to be inferred.
    """
    keys = {execution.execution_no: execution.check_key for execution in executions}
    in_doubt = {execution.check_key for execution in executions if execution.is_ambiguous or execution.retries}
    return {
        row.test_session_result_id
        for row in results
        if row.execution_no is not None and keys[row.execution_no] in in_doubt
    }


def _by_check(results: Iterable[ResultRow], project_id: str | None) -> dict[str, list[ResultRow]]:
    checks: dict[str, list[ResultRow]] = {}
    for row in results:
        key = row.check_id or f"{project_id or '-'}:{row.check_type or ''}:{row.check_name or ''}"
        checks.setdefault(key, []).append(row)
    return checks


# --- folding ----------------------------------------------------------------------------------------------------


def _fold(check_key: str, rows: list[ResultRow], *, is_final: bool) -> list[_Execution]:
    """Return the executions of one check of a test session; `is_final` tells whether the session is."""
    # Without any type, the results of a session that has ended are what the check came to.
    is_untyped = is_final and all(row.result_type is None for row in rows)
    if len(rows) == 1:  # nearly always: nothing is to be put in order
        return [_execution(check_key, "sequence" if rows[0].sequence_id else "inferred", rows, is_untyped)]
    if all(row.started_at is not None for row in rows):
        rows.sort(key=lambda row: (_start(row), row.position))
    else:
        rows.sort(key=lambda row: row.position)

    if all(row.sequence_id for row in rows):
        by_sequence: dict[str | None, list[ResultRow]] = {}
        for row in rows:
            by_sequence.setdefault(row.sequence_id, []).append(row)
        return [_execution(check_key, "sequence", members, is_untyped) for members in by_sequence.values()]

    inferred: list[list[ResultRow]] = []
    still_open: dict[str | None, list[ResultRow]] = {}  # by run location
    for row in rows:
        members = still_open.get(row.run_location)
        if members is None:
            members = still_open[row.run_location] = []
            inferred.append(members)
        members.append(row)
        if is_untyped or row.result_type == "FINAL":
            del still_open[row.run_location]
    executions = [_execution(check_key, "inferred", members, is_untyped) for members in inferred]
    return _with_retries_elsewhere(executions) if still_open and len(executions) > 1 else executions


def _start(row: ResultRow) -> datetime:
    assert row.started_at is not None  # noqa: S101 - the callers ask for it
    return row.started_at


def _execution(check_key: str, grouped_by: str, rows: list[ResultRow], is_untyped: bool) -> _Execution:
    for row in reversed(rows):
        if is_untyped or row.result_type == "FINAL":
            return _Execution(check_key, grouped_by, rows, row, True)
    return _Execution(check_key, grouped_by, rows, rows[-1], False)


def _with_retries_elsewhere(executions: list[_Execution]) -> list[_Execution]:
    """A retry may run in another location: attempts without a FINAL join the execution that goes on from them.

    That is the earliest one of another location that begins when they have ended. Those that end last come first,
    so that attempts in three locations become one chain.
    """
    # Numbers are indexes of `executions`. At most one execution of each location waits, so no two are equal here.
    waiting = sorted(
        (
            (execution.rows[-1].stopped_at or _start(execution.rows[-1]), execution.place, number)
            for number, execution in enumerate(executions)
            if all(row.result_type == "ATTEMPT" and row.started_at is not None for row in execution.rows)
        ),
        reverse=True,
    )
    starts = sorted(
        (execution.place, number)
        for number, execution in enumerate(executions)
        if execution.rows[0].started_at is not None
    )
    gone: set[int] = set()
    for end, _, number in waiting:
        execution = executions[number]
        at = bisect_left(starts, ((end, False, ""), -1))
        location = execution.shown.run_location
        while at < len(starts) and executions[starts[at][1]].shown.run_location == location:
            at += 1
        if at == len(starts):
            continue
        _, next_number = starts.pop(at)
        del starts[bisect_left(starts, (execution.place, number))]
        gone.add(number)
        target = executions[next_number]
        target.rows = execution.rows + target.rows
        insort(starts, (target.place, next_number))
    return [execution for number, execution in enumerate(executions) if number not in gone]


# --- twins ------------------------------------------------------------------------------------------------------


def _tell_twins_apart(executions: Iterable[_Execution]) -> None:
    """Mark executions of checks that have no id and share a name: which of them is which check?

    Where each has a file of its own, the file becomes part of the key. Else they are ambiguous.
    """
    places: dict[tuple[str, str | None], list[_Execution]] = {}
    for execution in executions:
        if execution.shown.check_id is None:
            places.setdefault((execution.check_key, execution.shown.run_location), []).append(execution)
    for twins in places.values():
        if len(twins) == 1:
            continue
        paths = {twin.shown.file_path for twin in twins}
        if all(paths) and len(paths) == len(twins):
            for twin in twins:
                twin.check_key += f":{twin.shown.file_path}"
        else:
            for twin in twins:
                twin.is_ambiguous = True


# --- rows -------------------------------------------------------------------------------------------------------


def _execution_row(execution_no: int, execution: _Execution, test_session: Mapping[str, Any]) -> ExecutionRow:
    shown, has_final = execution.shown, execution.has_final
    retries, retry_cost_ms, has_failed = 0, 0.0, False
    started_at: datetime | None = None
    for row in execution.rows:
        if row.result_type == "ATTEMPT":
            retries += 1
            retry_cost_ms += milliseconds(row.started_at, row.stopped_at) or 0.0
            has_failed = has_failed or row.status in FAILED_STATUSES
        if row.started_at is not None and (started_at is None or row.started_at < started_at):
            started_at = row.started_at
    verdict = _verdict(shown.status) if has_final else None
    stopped_at = shown.stopped_at if has_final else None
    is_degraded = True if has_final and shown.status == "DEGRADED" else shown.is_degraded
    # By position: 0.2 µs per row, 2.5 µs by keyword, and a load writes tens of thousands. Only here and in
    # `test_sessions._result_row`; the tests compare every column.
    return ExecutionRow(
        test_session["test_session_id"],
        execution_no,
        execution.check_key,
        history_key(
            test_session["account_id"],
            execution.check_key,
            test_session["branch_name"],
            test_session["environment"],
            shown.run_location,
        ),
        execution.grouped_by,
        shown.test_session_result_id,
        shown.link,
        shown.check_id,
        shown.check_name,
        shown.check_type,
        shown.run_location,
        shown.status,
        verdict,
        retries,
        verdict == "PASSED" and has_failed,
        is_degraded,
        shown.has_errors,
        test_session["started_at"] if started_at is None else started_at,
        stopped_at,
        execution.is_ambiguous,
        milliseconds(shown.started_at, stopped_at),
        retry_cost_ms,
        test_session["account_id"],
        test_session["project_id"],
        test_session["environment"],
        test_session["branch_name"],
        test_session["commit_id"],
    )


def _verdict(status: str) -> str | None:
    """Return the verdict of a FINAL with this status; None where it is undecided."""
    if status in PASSED_STATUSES:
        return "PASSED"
    return "FAILED" if status in FAILED_STATUSES else None


def history_key(*parts: str | None) -> str:
    """Return the hash of account_id, check_key, branch_name, environment and run_location."""
    # A JSON array keeps null and '' apart, and no part can run over into the next.
    return sha256(msgspec.json.encode(parts)).hexdigest()

"""Saving test sessions and the details of their results, for whoever has documents: recording, details, replay.

Hides that details and executions outlive a rewrite: a session is replaced as a whole, and what was read of its
results one by one is kept with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from etl import details_due, normalize, warehouse
from etl.normalize import FAILED_STATUSES, ResultRow, TestSessionRows

Details = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by session, then by result: columns


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which results without details are to be read one by one (`export.result_details`), and with which account."""

    which: str
    account_id: str


def save_test_sessions(
    connection: Connection,
    batch: Sequence[TestSessionRows],
    etl_run_id: str,
    *,
    rewrite: bool = False,
    details: Details | None = None,
    wanted: Wanted | None = None,
) -> warehouse.Saved:
    """Save rows and drift in the caller's transaction; with `rewrite` unchanged ones, too (and no drift twice).

    Details of results that we hold are kept; those of `details` win unless they are older. What is `wanted` and not
    held becomes due.
    """
    # Locked, so that another process cannot save details between our look and our rewrite.
    held = warehouse.held_columns(connection, [rows.test_session_id for rows in batch], lock=True)
    _keep_details(connection, batch, held, details or {})
    saved = warehouse.save_test_sessions(connection, batch, held, etl_run_id=etl_run_id, rewrite=rewrite)
    changed = [rows for rows in batch if rows.test_session_id in saved.changed]
    for rows in changed:
        if rows.results is None:
            # The stored results stay, but executions copy columns of the session that may have changed.
            regroup(connection, rows.test_session)
    if wanted is not None:
        _want_details(connection, batch, saved.changed, wanted)
    if not rewrite:
        warehouse.save_drift(connection, [rows.drift for rows in changed])
    return saved


def _keep_details(
    connection: Connection, batch: Sequence[TestSessionRows], sessions: Collection[str], details: Details
) -> None:
    held = warehouse.held_details(connection, sessions)
    for rows in batch:
        ours, theirs = held.get(rows.test_session_id, {}), details.get(rows.test_session_id, {})
        if not ours and not theirs:
            continue
        for row in rows.results or ():
            told = [of[row.test_session_result_id] for of in (theirs, ours) if row.test_session_result_id in of]
            if told:
                for column, value in max(told, key=lambda columns: columns["details_fetched_at"]).items():
                    setattr(row, column, value)
        if rows.results is not None:
            rows.executions = normalize.normalize_executions(rows.results, rows.test_session)


def _want_details(
    connection: Connection, batch: Iterable[TestSessionRows], changed: Collection[str], wanted: Wanted
) -> None:
    """Note which results are to be read one by one.

    Of an unchanged session that is final, too: it was fetched by force, or at a settle delay. One that runs would
    bring back with each poll what could not be read.
    """
    if wanted.which == "none":
        return
    due: list[tuple[str, str]] = []
    for rows in batch:
        if not rows.results or not (rows.is_final or rows.test_session_id in changed):
            continue
        in_doubt = normalize.results_in_doubt(rows.results, rows.executions or ())
        due += [
            (rows.test_session_id, row.test_session_result_id)
            for row in rows.results
            if row.details_fetched_at is None and _has_ended(row, rows.is_final)
            if wanted.which == "all" or row.test_session_result_id in in_doubt or _has_failed(row)
        ]
    details_due.add(connection, wanted.account_id, due)


def _has_ended(row: ResultRow, is_final: bool) -> bool:
    # What is PENDING in a final session was never run; what has no type in one that runs may not be at its end.
    return row.result_type != "PENDING" if is_final else row.result_type in ("FINAL", "ATTEMPT")


def _has_failed(row: ResultRow) -> bool:
    return bool(row.has_failures or row.has_errors or row.status in FAILED_STATUSES)


def regroup(connection: Connection, test_session: Mapping[str, Any]) -> bool:
    """Compute the executions of a session's stored results anew. Whether that changed anything; if not, no write."""
    id_ = test_session["test_session_id"]
    results = [ResultRow(**row) for row in warehouse.held_results(connection, id_)]
    before = [row.execution_no for row in results]
    executions = normalize.normalize_executions(results, test_session)
    moved = {
        row.test_session_result_id: row.execution_no
        for row, number in zip(results, before, strict=True)
        if row.execution_no is not None and row.execution_no != number
    }
    return warehouse.replace_executions(connection, id_, executions, moved)

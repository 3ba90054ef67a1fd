"""Saving test sessions, for the phases that have documents: drain and replay."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from etl import normalize, warehouse
from etl.normalize import TestSessionRows


def save_test_sessions(
    connection: Connection, batch: Sequence[TestSessionRows], etl_run_id: str, *, rewrite: bool = False
) -> warehouse.Saved:
    """Save rows and drift in the caller's transaction; with `rewrite` unchanged ones, too (and no drift twice)."""
    saved = warehouse.save_test_sessions(connection, batch, etl_run_id=etl_run_id, rewrite=rewrite)
    changed = [rows for rows in batch if rows.test_session_id in saved.changed]
    for rows in changed:
        if rows.results is None:
            # The stored results stay, but executions copy columns of the session that may have changed.
            results = [normalize.ResultRow(**row) for row in warehouse.held_results(connection, rows.test_session_id)]
            executions = normalize.normalize_executions(results, rows.test_session)
            warehouse.replace_executions(connection, rows.test_session_id, executions)
    if not rewrite:
        warehouse.save_drift(connection, [rows.drift for rows in changed])
    return saved

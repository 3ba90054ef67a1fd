"""Normalizing: API documents become rows. Pure: no I/O, no clock.

    models          documents as Checkly describes them
    rows            what they become
    test_sessions   the detail and the list entry of a test session
    executions      folding of results into executions
    result_details  a result's own document
    error_groups    the document of an error group
    values, drift   decoding, ids, times, and what the columns do not know

A legal document always becomes rows; an illegal one raises PayloadError, which says where and why. What is legal but
unknown becomes drift, never a dead session.
"""

from __future__ import annotations

from etl.normalize.drift import Drift
from etl.normalize.error_groups import normalize_error_group
from etl.normalize.executions import FAILED_STATUSES, history_key, normalize_executions, results_in_doubt
from etl.normalize.result_details import normalize_result_detail, reduced_result
from etl.normalize.rows import ErrorGroupRows, ExecutionRow, ResultDetailRows, ResultRow, TestSessionRows
from etl.normalize.test_sessions import entry_key, normalize_test_session, unchanged

__all__ = [
    "FAILED_STATUSES",
    "Drift",
    "ErrorGroupRows",
    "ExecutionRow",
    "ResultDetailRows",
    "ResultRow",
    "TestSessionRows",
    "entry_key",
    "history_key",
    "normalize_error_group",
    "normalize_executions",
    "normalize_result_detail",
    "normalize_test_session",
    "reduced_result",
    "results_in_doubt",
    "unchanged",
]

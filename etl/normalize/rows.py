"""Rows that the normalizers make: one class per table, or a group of tables that are saved together."""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from etl.normalize.drift import Drift

Row = dict[str, Any]


class StructRow(msgspec.Struct):
    """A row in a fifth of a dict's memory: a session may have 100,000. `row["name"]` reads a column."""

    def __getitem__(self, column: str) -> Any:
        return getattr(self, column)

    def keys(self) -> KeysView[str]:
        return dict.fromkeys(self.__struct_fields__).keys()


class ResultRow(StructRow, gc=False):
    """A row of test_session_results; the last nine columns are what only a result's own document tells."""

    test_session_id: str
    test_session_result_id: str
    position: int
    execution_no: int | None
    check_id: str | None
    check_type: str | None
    check_name: str | None
    run_location: str | None
    result_type: str | None
    status: str
    has_errors: bool | None
    has_failures: bool | None
    is_degraded: bool | None
    is_aborted: bool | None
    response_time_ms: float | None
    started_at: datetime | None
    stopped_at: datetime | None
    link: str | None
    details_fetched_at: datetime | None = None
    sequence_id: str | None = None
    attempts: int | None = None
    file_path: str | None = None
    private_location_id: str | None = None
    over_max_response_time: bool | None = None
    is_cancelled: bool | None = None
    schedule_error: str | None = None
    trace_id: str | None = None


class ExecutionRow(StructRow, gc=False):
    """A row of check_executions."""

    test_session_id: str
    execution_no: int
    check_key: str
    history_key: str
    grouped_by: str
    test_session_result_id: str
    link: str | None
    check_id: str | None
    check_name: str | None
    check_type: str | None
    run_location: str | None
    status: str
    verdict: str | None
    retries: int
    is_retry_flaky: bool
    is_degraded: bool | None
    has_errors: bool | None
    started_at: datetime
    stopped_at: datetime | None
    is_ambiguous: bool
    duration_ms: float | None
    retry_cost_ms: float
    account_id: str | None
    project_id: str | None
    environment: str | None
    branch_name: str | None
    commit_id: str | None


@dataclass(slots=True)
class TestSessionRows:
    """Everything that one test session is in the warehouse.

    `results` and `executions` are None when the document does not tell (the stored ones stay);
    `error_group_ids` likewise. `test_session` lacks the columns that only the save knows
    (first_exported_at, exported_at, etl_run_id).
    """

    __test__ = False

    test_session: Row
    results: list[ResultRow] | None
    executions: list[ExecutionRow] | None
    error_group_ids: list[str] | None
    result_error_groups: list[tuple[str, str]]
    drift: Drift

    @property
    def test_session_id(self) -> str:
        return str(self.test_session["test_session_id"])

    @property
    def is_final(self) -> bool:
        return bool(self.test_session["is_final"])


@dataclass(slots=True)
class ErrorGroupRows:
    """Everything that one error group is in the warehouse, but what only the save knows."""

    error_group: Row
    environments: list[str]
    playwright_tests: list[Row]
    root_cause_analyses: list[Row]
    drift: Drift


@dataclass(slots=True)
class ResultDetailRows:
    """What a result's own document tells: the last columns of its row, but details_fetched_at."""

    columns: Row
    drift: Drift

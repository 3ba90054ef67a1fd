"""Test sessions: the detail document and the list entry of one become its rows.

Rules: which of the two wins a field, what is final, and what a broken field costs. An illegal detail raises
PayloadError, which says where and why. What is legal but unknown to the typed columns (a new field, a new enum
value, an id that is no UUID and no key of ours) becomes drift. Fields that the columns can do without may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from etl import documents
from etl.documents import TEST_SESSION, TEST_SESSION_SUMMARY, Document, check_id, our_id
from etl.errors import PayloadError
from etl.normalize.drift import Drift
from etl.normalize.executions import normalize_executions
from etl.normalize.models import Detail, EntryKey, GitHub, Metadata, Result, Summary
from etl.normalize.rows import ResultRow, Row, TestSessionRows
from etl.normalize.values import (
    decode,
    decode_leniently,
    decode_part,
    named_fields,
    other_id,
    our_ids,
    text,
    utc,
    utc_or_none,
)

FINAL_STATUSES = frozenset({"PASSED", "FAILED", "CANCELLED"})
_STATUSES = FINAL_STATUSES | {"RUNNING"}
_RESULT_STATUSES = _STATUSES | {"DEGRADED", "TIMED_OUT"}  # the verdict of an execution knows these
_RESULT_TYPES = frozenset({"FINAL", "ATTEMPT", "PENDING"})
_PROVIDERS = frozenset({"GITHUB", "VERCEL", "API", "TRIGGER", "PW_REPORTER"})
_CHECK_TYPES = frozenset(
    [
        "AGENTIC",
        "API",
        "BROWSER",
        "DNS",
        "GRPC",
        "HEARTBEAT",
        "ICMP",
        "MULTI_STEP",
        "PLAYWRIGHT",
        "SSL",
        "TCP",
        "TRACEROUTE",
        "URL",
    ]
)
# Columns that a list entry fills under another name than its own.
_COLUMN_OF = {"invoker": "invoker_name"}
_TIME: Any = datetime | None


def normalize_test_session(
    detail: Document,
    *,
    test_session_id: str,
    account_id: str | None,
    summary: Document | None = None,
    held: Mapping[str, Any] | None = None,
) -> TestSessionRows:
    """Return the rows of one test session.

    `test_session_id` is the id that was asked for: a document of another one raises PayloadError, like any illegal
    detail. `account_id` is the account that it was fetched with. `summary` is its list entry; where that or a field
    of it is missing or broken (which is drift), `held` (the stored columns of test_sessions) fills what only the list
    knows. For fields in both the detail wins, and neither nulls the other's.
    """
    drift = Drift()
    document = decode(detail, Detail, TEST_SESSION, drift)
    check_id(document.test_session_id, test_session_id, "$.testSessionId")
    listed = _listed(summary, test_session_id, held, drift)
    session = _test_session_row(document, listed, account_id, drift)
    session["payload_sha256"] = detail.sha256
    session["summary_sha256"] = summary.sha256 if summary else (held or {}).get("summary_sha256")

    error_group_ids: list[str] | None = None
    if document.error_group_ids is not None:
        error_group_ids = our_ids(document.error_group_ids, "$.errorGroupIds")
    else:
        error_group_ids = listed.get("error_group_ids")
    rows = TestSessionRows(
        test_session=session,
        results=None,
        executions=None,
        error_group_ids=error_group_ids,
        result_error_groups=[],
        drift=drift,
    )
    if document.results is not None:
        rows.results = _result_rows(document.results, rows, drift)
        rows.executions = normalize_executions(rows.results, session)
    return rows


def unchanged(held: Mapping[str, Any]) -> TestSessionRows:
    """Return what stands for a test session that is stored just as it was fetched: its columns, nothing to write."""
    return TestSessionRows(
        test_session=dict(held),
        results=None,
        executions=None,
        error_group_ids=None,
        result_error_groups=[],
        drift=Drift(),
    )


def entry_key(entry: Document) -> tuple[str, datetime | None, str | None]:
    """Return id, creation time and account of a list entry. Raises PayloadError if it has no usable id."""
    with named_fields():
        key = documents.decode(entry, EntryKey)
    created_at: datetime | None = None
    try:
        created_at = utc(documents.decode_part(key.created_at, _TIME), "$.created_at")
    except PayloadError:
        created_at = None  # normalizing it will note the drift; discovery needs the id
    try:
        account_id: str | None = our_id(documents.decode_part(key.account_id, str), "$.accountId")
    except PayloadError:
        account_id = None
    return our_id(key.id, "$.id"), created_at, account_id


def _listed(
    summary: Document | None, test_session_id: str, held: Mapping[str, Any] | None, drift: Drift
) -> Mapping[str, Any]:
    """Return what the list says, by column: from the entry, else from the columns that one once filled."""
    known = held if held is not None and held.get("summary_sha256") is not None else {}
    if summary is None:
        return known
    try:
        columns, broken = _summary_columns(summary, test_session_id, drift)
    except PayloadError as error:  # no reason to lose a session whose own document is fine
        drift.note(TEST_SESSION_SUMMARY, error.json_path, error.reason)
        return known
    return {**columns, **{name: known[name] for name in broken if name in known}}


def _summary_columns(
    summary: Document, test_session_id: str, drift: Drift
) -> tuple[Mapping[str, Any], Sequence[str]]:
    """Return the columns of a list entry, and those whose field is broken. A broken field costs only itself."""
    entry, broken = decode_leniently(summary, Summary, TEST_SESSION_SUMMARY, drift)
    check_id(entry.id, test_session_id, "$.id")
    if entry.provider is not None and entry.provider not in _PROVIDERS:
        drift.note(TEST_SESSION_SUMMARY, "$.provider", entry.provider)

    def other(value: str | None, path: str) -> str | None:
        return other_id(value, TEST_SESSION_SUMMARY, path, drift)

    def moment(value: datetime | None, path: str) -> datetime | None:
        return utc_or_none(value, TEST_SESSION_SUMMARY, path, drift)

    try:
        error_group_ids = entry.error_group_ids and our_ids(entry.error_group_ids, "$.errorGroupIds")
    except PayloadError as error:
        drift.note(TEST_SESSION_SUMMARY, error.json_path, error.reason)
        error_group_ids = None
    columns = {
        "account_id": other(entry.account_id, "$.accountId"),
        "project_id": other(entry.project_id, "$.projectId"),
        "name": entry.name,
        "provider": entry.provider,
        "region": entry.region,
        "private_location_id": other(entry.private_location_id, "$.privateLocationId"),
        "invoker_name": entry.invoker.name if entry.invoker else None,
        "environment": entry.environment,
        "repo_url": entry.repo_url,
        "branch_name": entry.branch_name,
        "commit_id": entry.commit_id,
        "commit_owner": entry.commit_owner,
        "commit_message": entry.commit_message,
        "stopped_at": moment(entry.stopped_at, "$.stoppedAt"),
        "created_at": moment(entry.created_at, "$.created_at"),
        "updated_at": moment(entry.updated_at, "$.updated_at"),
        "error_group_ids": error_group_ids,
    }
    return columns, [_COLUMN_OF.get(name, name) for name in broken]


def _test_session_row(document: Detail, listed: Mapping[str, Any], account_id: str | None, drift: Drift) -> Row:
    metadata = document.metadata or Metadata()
    github = metadata.github or GitHub()
    started_at = utc(document.started_at, "$.startedAt")
    if document.stopped_at is msgspec.UNSET:
        stopped_at = listed.get("stopped_at")
    else:
        stopped_at = utc(document.stopped_at, "$.stoppedAt")
    if document.status not in _STATUSES:
        drift.note(TEST_SESSION, "$.status", document.status)
    # A document that says RUNNING and no end is behind its list entry, or our own row: it ends nothing by theirs.
    has_ended = stopped_at is not None and (document.status != "RUNNING" or document.stopped_at is not msgspec.UNSET)

    def first(value: str | None, column: str) -> Any:
        return listed.get(column) if value is None else value

    # A pull-request build has a detached HEAD and no branch. Without a pull request, GitHub's headRef may be ''.
    branch_name = first(metadata.branch_name, "branch_name")
    return {
        "test_session_id": document.test_session_id.lower(),
        "account_id": listed.get("account_id") or account_id,
        "project_id": listed.get("project_id"),
        "name": first(document.name, "name"),
        "status": document.status,
        "is_final": document.status in FINAL_STATUSES or has_ended,
        "provider": listed.get("provider"),
        "region": listed.get("region"),
        "private_location_id": listed.get("private_location_id"),
        "invoker_name": listed.get("invoker_name"),
        "environment": first(metadata.environment, "environment"),
        "repo_url": first(metadata.repo_url, "repo_url"),
        "branch_name": github.head_ref or None if branch_name is None else branch_name,
        "commit_id": first(metadata.commit_id, "commit_id"),
        "commit_owner": first(metadata.commit_owner, "commit_owner"),
        "commit_message": first(metadata.commit_message, "commit_message"),
        "github_reporting": github.reporting,
        "github_repository": github.repository,
        "github_sha": github.sha,
        "github_run_id": text(github.run_id),
        "github_run_attempt": text(github.run_attempt),
        "github_workflow": github.workflow,
        "github_job": github.job,
        "github_event_name": github.event_name,
        "github_ref": github.ref,
        "github_head_ref": github.head_ref,
        "github_base_ref": github.base_ref,
        "github_server_url": github.server_url,
        "started_at": started_at,
        "stopped_at": stopped_at,
        "time_elapsed_ms": document.time_elapsed,
        "link": document.test_session_link,
        "created_at": listed.get("created_at"),
        "updated_at": listed.get("updated_at"),
    }


def _result_rows(results: Sequence[msgspec.Raw], rows: TestSessionRows, drift: Drift) -> list[ResultRow]:
    """Return one row per id: the values of its last occurrence at the position of the first."""
    by_id: dict[str, ResultRow] = {}
    groups: dict[str, list[str]] = {}
    texts: dict[str | None, str | None] = {}
    test_session_id = rows.test_session_id
    for index, raw in enumerate(results):
        try:
            row, group_ids = _result_row(raw, test_session_id, index + 1, drift, texts)
        except PayloadError as error:
            if error.reason == documents.NESTED:
                raise  # of the document as a whole
            raise PayloadError(f"$.results[{index}]{error.json_path[1:]}", error.reason) from None
        id_ = row.test_session_result_id
        if id_ in by_id:
            row.position = by_id[id_].position
            groups.pop(id_, None)
        by_id[id_] = row
        if group_ids:
            groups[id_] = group_ids
    # In the order of the payload, even if only a later occurrence has groups.
    rows.result_error_groups = [(id_, group) for id_ in by_id if id_ in groups for group in groups[id_]]
    return list(by_id.values())


def _result_row(
    raw: msgspec.Raw, test_session_id: str, position: int, drift: Drift, texts: dict[str | None, str | None]
) -> tuple[ResultRow, list[str]]:
    """Return one result and its error groups. `texts` keeps a text that many results share once."""
    result = decode_part(raw, Result, TEST_SESSION, drift, "$.results[]")
    if result.status not in _RESULT_STATUSES:
        drift.note(TEST_SESSION, "$.results[].status", result.status)
    if result.check_type is not None and result.check_type not in _CHECK_TYPES:
        drift.note(TEST_SESSION, "$.results[].checkType", result.check_type)
    if result.result_type is not None and result.result_type not in _RESULT_TYPES:
        drift.note(TEST_SESSION, "$.results[].resultType", result.result_type)
    once = texts.setdefault
    check_id = other_id(result.check_id, TEST_SESSION, "$.results[].checkId", drift)
    row = ResultRow(  # by position: see executions.py
        test_session_id,
        our_id(result.test_session_result_id, "$.testSessionResultId"),
        position,
        None,
        once(check_id, check_id),
        once(result.check_type, result.check_type),
        once(result.name, result.name),
        once(result.run_location, result.run_location),
        once(result.result_type, result.result_type),
        once(result.status, result.status) or "",
        result.has_errors,
        result.has_failures,
        result.is_degraded,
        result.aborted,
        result.response_time,
        utc(result.started_at, "$.startedAt"),
        utc(result.stopped_at, "$.stoppedAt"),
        result.test_session_result_link,
    )
    return row, our_ids(result.error_group_ids, "$.errorGroupIds") if result.error_group_ids else []

"""Pure: API documents -> rows. No I/O, no clock, no order of its own.

Hides the shapes of Checkly's documents (`/v1/test-sessions`, `/v1/test-session-error-groups`) and the rules
that turn them into rows: which document wins a field, what is final, how attempts fold into executions,
what `check_key` and `history_key` are made of.

A legal document always becomes rows; an illegal one raises PayloadError, which says where and why. What is
legal but unknown to the typed columns (a new field, a new enum value, an id that is no UUID where the id is
not a key of ours) becomes *drift*, never a dead session. A required field that the columns can do without
may be missing: losing a session for good is worse than a null.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from etl import documents
from etl.documents import (
    ERROR_GROUP,
    TEST_SESSION,
    TEST_SESSION_RESULT,
    TEST_SESSION_SUMMARY,
    UUID,
    Document,
    check_id,
    our_id,
)
from etl.errors import PayloadError

Row = dict[str, Any]
S = TypeVar("S", bound=msgspec.Struct)

FINAL_STATUSES = frozenset({"PASSED", "FAILED", "CANCELLED"})
_STATUSES = FINAL_STATUSES | {"RUNNING"}
_RESULT_TYPES = frozenset({"FINAL", "ATTEMPT", "PENDING"})
_PROVIDERS = frozenset({"GITHUB", "VERCEL", "API", "TRIGGER", "PW_REPORTER"})
_CHECK_TYPES = frozenset(
    [
        "AGENTIC",
        "API",
        "BROWSER",
        "HEARTBEAT",
        "ICMP",
        "MULTI_STEP",
        "TCP",
        "PLAYWRIGHT",
        "URL",
        "DNS",
        "SSL",
        "GRPC",
        "TRACEROUTE",
    ]
)
_KEY_LENGTH = 500  # what we put into a key of a table must fit into an index entry
_EXAMPLE_LENGTH = 200
_MOST_DRIFT = 100  # of one document: names that are different in each would fill a table
_ANALYSIS_DEPTH = 64  # deeper, and whoever serializes it may run out of stack; Checkly's own are 4 deep
_LONGEST_SCALAR = 100_000  # bytes of a value that is kept of a result's document
_MILLISECOND = timedelta(milliseconds=1)


# --- documents as Checkly describes them; `Raw` marks what is known and not decoded with the rest ----------


_NULL = msgspec.Raw(b"null")


class _Document(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Unknown fields are forbidden only so that they are noticed: see `_decode`."""


class GitHub(_Document):
    reporting: bool | None = None
    repository: str | None = None
    sha: str | None = None
    run_id: str | int | None = None
    run_attempt: str | int | None = None
    workflow: str | None = None
    job: str | None = None
    event_name: str | None = None
    ref: str | None = None
    head_ref: str | None = None
    base_ref: str | None = None
    server_url: str | None = None


class Metadata(_Document):
    environment: str | None = None
    repo_url: str | None = None
    commit_id: str | None = None
    commit_owner: str | None = None
    commit_message: str | None = None
    branch_name: str | None = None
    github: GitHub | None = None


class Result(_Document):
    test_session_result_id: str
    status: str
    test_session_result_link: str | None = None
    check_id: str | None = None
    check_type: str | None = None
    name: str | None = None
    run_location: str | None = None
    error_group_ids: list[str] | None = None
    result_type: str | None = None
    has_errors: bool | None = None
    has_failures: bool | None = None
    is_degraded: bool | None = None
    aborted: bool | None = None
    response_time: float | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None


class Detail(_Document):
    """`GET /v1/test-sessions/{testSessionId}`"""

    test_session_id: str
    status: str
    started_at: datetime
    test_session_link: str | None = None
    name: str | None = None
    error_group_ids: list[str] | None = None
    stopped_at: datetime | msgspec.UnsetType | None = msgspec.UNSET
    time_elapsed: float | None = None
    metadata: Metadata | None = None
    results: list[msgspec.Raw] | None = None  # each a Result: decoded one by one, because there may be 100,000


class ResultDetail(_Document):
    """`GET /v1/test-sessions/{testSessionId}/results/{testSessionResultId}`, as `reduced_result` leaves it."""

    test_session_result_id: str | None = None
    id: str | None = None  # the same
    attempts: float | None = None
    sequence_id: str | None = None
    file_path: str | None = None
    private_location_id: str | None = None
    over_max_response_time: bool | None = None
    is_cancelled: bool | None = None
    schedule_error: str | None = None
    trace_id: str | None = None
    created_at: msgspec.Raw = msgspec.field(default=_NULL, name="created_at")
    updated_at: msgspec.Raw = msgspec.field(default=_NULL, name="updated_at")
    # What the session's document tells as well, and later than this one: it wins.
    test_session_result_link: msgspec.Raw = _NULL
    check_id: msgspec.Raw = _NULL
    check_type: msgspec.Raw = _NULL
    name: msgspec.Raw = _NULL
    run_location: msgspec.Raw = _NULL
    error_group_ids: msgspec.Raw = _NULL
    result_type: msgspec.Raw = _NULL
    status: msgspec.Raw = _NULL
    has_errors: msgspec.Raw = _NULL
    has_failures: msgspec.Raw = _NULL
    is_degraded: msgspec.Raw = _NULL
    aborted: msgspec.Raw = _NULL
    response_time: msgspec.Raw = _NULL
    started_at: msgspec.Raw = _NULL
    stopped_at: msgspec.Raw = _NULL


class Invoker(_Document):
    name: str | None = None
    picture: msgspec.Raw = _NULL


class Summary(_Document):
    """One entry of `GET /v1/test-sessions`."""

    id: str
    account_id: str | None = None
    project_id: str | None = None
    name: str | None = None
    provider: str | None = None
    error_group_ids: list[str] | None = None
    running: msgspec.Raw = _NULL
    passed: msgspec.Raw = _NULL
    failed: msgspec.Raw = _NULL
    cancelled: msgspec.Raw = _NULL
    status: msgspec.Raw = _NULL
    region: str | None = None
    private_location_id: str | None = None
    invoker: Invoker | None = None
    repo_url: str | None = None
    commit_id: str | None = None
    commit_owner: str | None = None
    commit_message: str | None = None
    branch_name: str | None = None
    environment: str | None = None
    started_at: msgspec.Raw = _NULL
    stopped_at: datetime | None = None
    created_at: datetime | None = msgspec.field(default=None, name="created_at")
    updated_at: datetime | None = msgspec.field(default=None, name="updated_at")


class PlaywrightTest(_Document):
    project_name: str | None = None
    spec_id: str | int | None = None
    test_file: str | None = None
    test_title: str | None = None
    suite_path: list[str] | None = None


class RootCauseAnalysis(_Document):
    id: str | None = None
    created_at: datetime | None = msgspec.field(default=None, name="created_at")
    analysis: msgspec.Raw = _NULL
    provider: str | None = None
    model: str | None = None
    duration_ms: float | None = None
    user_context: msgspec.Raw = _NULL


class ErrorGroup(_Document):
    """`GET /v1/test-session-error-groups/{id}`, and an entry of the list."""

    id: str
    project_id: str | None = None
    environments: list[str] | None = None
    error_hash: str | None = None
    raw_error_message: str | None = None
    cleaned_error_message: str | None = None
    first_seen: datetime | None = None
    last_seen: datetime | None = None
    archived_until_next_event: bool | None = None
    pwt_metadata: list[PlaywrightTest] | None = None
    root_cause_analyses: list[RootCauseAnalysis] | None = None


_TIME: Any = datetime | None


class _EntryKey(msgspec.Struct):
    """What discovery is after in an entry of any list."""

    id: str
    created_at: msgspec.Raw = _NULL


# --- rows ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Drift:
    """What the typed columns do not know: (kind, json_path) -> (occurrences, example)."""

    found: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def note(self, kind: str, json_path: str, example: str) -> None:
        """Count one occurrence. Paths hold no positions, so that a thousand results are one line.

        Of several examples the least is kept, so that it does not depend on who came first.
        """
        key = (kind, str(documents.storable(json_path))[:_KEY_LENGTH])
        if key not in self.found and len(self.found) >= _MOST_DRIFT:
            return
        shown = str(documents.storable(example[:_EXAMPLE_LENGTH]))
        if _may_be_signed(_unescaped(shown)):
            shown = "a URL that may be signed"
        occurrences, kept = self.found.get(key, (0, shown))
        self.found[key] = (occurrences + 1, min(kept, shown))

    def add(self, other: Drift) -> None:
        """Take over what another one noted."""
        for key, (occurrences, example) in other.found.items():
            if key in self.found or len(self.found) < _MOST_DRIFT:
                before, kept = self.found.get(key, (0, example))
                self.found[key] = (before + occurrences, min(kept, example))


class _Row(msgspec.Struct):
    """A row in a fifth of a dict's size: a session may have 100,000. Fields are columns, `row["name"]` reads one."""

    def __getitem__(self, column: str) -> Any:
        return getattr(self, column)

    def keys(self) -> KeysView[str]:
        return dict.fromkeys(self.__struct_fields__).keys()


class ResultRow(_Row, gc=False):
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


class ExecutionRow(_Row, gc=False):
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


def normalize_test_session(
    detail: Document,
    *,
    test_session_id: str,
    account_id: str | None,
    summary: Document | None = None,
    held: Mapping[str, Any] | None = None,
) -> TestSessionRows:
    """Rows of one test session.

    `test_session_id` is the id that was asked for: a document of another one raises PayloadError. `account_id`
    is the account that it was fetched with. `summary` is its list entry; where that is not at hand, or unusable
    (which is drift), `held` (the columns of test_sessions as they stand) fills what only the list knows. For fields
    in both the detail wins, and neither nulls the other's.
    """
    drift = Drift()
    document = _decode(detail, Detail, TEST_SESSION, drift)
    check_id(document.test_session_id, test_session_id, "$.testSessionId")
    listed = _listed(summary, test_session_id, held, drift)
    session = _test_session_row(document, listed, account_id, drift)
    session["payload_sha256"] = detail.sha256
    session["summary_sha256"] = summary.sha256 if summary else (held or {}).get("summary_sha256")

    error_group_ids: list[str] | None = None
    if document.error_group_ids is not None:
        error_group_ids = _our_ids(document.error_group_ids, "$.errorGroupIds")
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
        rows.executions = _execution_rows(rows.results, session)
    return rows


def unchanged(held: Mapping[str, Any]) -> TestSessionRows:
    """What stands for a test session of which we hold just what was fetched: its columns, and nothing to write."""
    return TestSessionRows(
        test_session=dict(held),
        results=None,
        executions=None,
        error_group_ids=None,
        result_error_groups=[],
        drift=Drift(),
    )


def normalize_error_group(document: Document, *, error_group_id: str) -> ErrorGroupRows:
    """Rows of one error group. Raises PayloadError for another id than the one asked for."""
    drift = Drift()
    group = _decode(document, ErrorGroup, ERROR_GROUP, drift)
    check_id(group.id, error_group_id, "$.id")
    environments = dict.fromkeys(name[:_KEY_LENGTH] for name in group.environments or ())
    return ErrorGroupRows(
        error_group={
            "error_group_id": error_group_id,
            "project_id": _other_id(group.project_id, ERROR_GROUP, "$.projectId", drift),
            "error_hash": group.error_hash,
            "raw_error_message": group.raw_error_message,
            "cleaned_error_message": group.cleaned_error_message,
            "first_seen": _utc(group.first_seen, "$.firstSeen"),
            "last_seen": _utc(group.last_seen, "$.lastSeen"),
            "archived_until_next_event": group.archived_until_next_event,
        },
        environments=list(environments),
        playwright_tests=[
            {
                "error_group_id": error_group_id,
                "position": position,
                "project_name": test.project_name,
                "spec_id": _text(test.spec_id),
                "test_file": test.test_file,
                "test_title": test.test_title,
                "suite_path": test.suite_path,
            }
            for position, test in enumerate(group.pwt_metadata or (), 1)
        ],
        root_cause_analyses=[
            _root_cause_analysis_row(error_group_id, position, analysis, drift)
            for position, analysis in enumerate(group.root_cause_analyses or (), 1)
        ],
        drift=drift,
    )


_DETAIL_FIELDS = frozenset({"filePath", "scheduleError", "traceId"})  # texts of theirs become columns


def reduced_result(document: Document) -> Document:
    """What may be kept of a result's document: its own scalar fields and the ids of its error groups.

    Its sections (apiCheckResult and the like: logs, requests, responses, assets) are large, and hold secrets of
    customers and signed URLs. A text with a URL that has a query string or a fragment may be signed as well: where
    it has a column, those are cut off, and else it is left out, whatever field it is in.
    """
    kept: dict[str, msgspec.Raw | str | list[str]] = {}
    for name, raw in documents.decode(document, dict[str, msgspec.Raw]).items():
        value = memoryview(raw)
        if name.endswith("CheckResult") or _may_be_signed(name) or len(value) > _LONGEST_SCALAR:
            continue
        first = bytes(value[:1])
        if name == "errorGroupIds" and first == b"[":
            ids = documents.decode_part(raw, list[Any])
            kept[name] = [id_ for id_ in ids if isinstance(id_, str) and UUID.fullmatch(id_.lower())]
        elif first == b'"' and _may_be_signed(text := documents.decode_part(raw, str)):
            if name in _DETAIL_FIELDS:
                kept[name] = _SIGNED.sub(r"\1", text)
        elif first not in b"[{":
            kept[name] = raw
    return documents.known(msgspec.json.encode(kept))


def normalize_result_detail(document: Document, *, test_session_result_id: str) -> ResultDetailRows:
    """What a document that `reduced_result` made tells. Raises PayloadError for another id than the one asked for."""
    drift = Drift()
    detail = _decode(document, ResultDetail, TEST_SESSION_RESULT, drift)
    own, alias = detail.test_session_result_id, detail.id
    check_id(own or alias or "", test_session_result_id, "$.testSessionResultId")

    def other(value: str | None, path: str) -> str | None:
        return _other_id(value, TEST_SESSION_RESULT, path, drift)

    return ResultDetailRows(
        columns={
            "sequence_id": other(detail.sequence_id, "$.sequenceId"),
            "attempts": _count(detail.attempts, TEST_SESSION_RESULT, "$.attempts", drift),
            "file_path": detail.file_path,
            "private_location_id": other(detail.private_location_id, "$.privateLocationId"),
            "over_max_response_time": detail.over_max_response_time,
            "is_cancelled": detail.is_cancelled,
            "schedule_error": detail.schedule_error,
            "trace_id": detail.trace_id,
        },
        drift=drift,
    )


def normalize_executions(results: Sequence[ResultRow], test_session: Mapping[str, Any]) -> list[ExecutionRow]:
    """The executions of result rows, given their session's. Sets each row's execution_no.

    For rows that stand in the warehouse already: the session's own columns, which executions copy and `check_key`
    and `history_key` are made of, may have changed without them, and details tell sequences that group them anew.
    """
    return _execution_rows(results, test_session)


def entry_key(entry: Document) -> tuple[str, datetime | None]:
    """Id and creation time of a list entry. Raises PayloadError if it has no usable id."""

    with _named_fields():
        key = documents.decode(entry, _EntryKey)
    created_at: datetime | None = None
    try:
        created_at = _utc(documents.decode_part(key.created_at, _TIME), "$.created_at")
    except PayloadError:
        created_at = None  # its normalization will say so; the id is what discovery is after
    return our_id(key.id, "$.id"), created_at


def document_id(detail: Document) -> str | None:
    """The id that a detail document says it is of, whatever else is wrong with it; None if it does not."""
    try:
        return our_id(documents.decode(detail, _DetailId).test_session_id, "$.testSessionId")
    except PayloadError:
        return None


class _DetailId(msgspec.Struct, rename="camel"):
    test_session_id: str


# --- test sessions ------------------------------------------------------------------------------------------


def _listed(
    summary: Document | None, test_session_id: str, held: Mapping[str, Any] | None, drift: Drift
) -> Mapping[str, Any]:
    """What the list says, by column name: from the entry, else from the columns that one once filled."""
    if summary is not None:
        try:
            return _summary_columns(summary, test_session_id, drift)
        except PayloadError as error:  # no reason to lose a session whose own document is fine
            drift.note(TEST_SESSION_SUMMARY, error.json_path, error.reason)
    return held if held is not None and held.get("summary_sha256") is not None else {}


def _summary_columns(summary: Document, test_session_id: str, drift: Drift) -> Mapping[str, Any]:
    entry = _decode(summary, Summary, TEST_SESSION_SUMMARY, drift)
    check_id(entry.id, test_session_id, "$.id")
    if entry.provider is not None and entry.provider not in _PROVIDERS:
        drift.note(TEST_SESSION_SUMMARY, "$.provider", entry.provider)

    def other(value: str | None, path: str) -> str | None:
        return _other_id(value, TEST_SESSION_SUMMARY, path, drift)

    return {
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
        "stopped_at": _utc(entry.stopped_at, "$.stoppedAt"),
        "created_at": _utc(entry.created_at, "$.created_at"),
        "updated_at": _utc(entry.updated_at, "$.updated_at"),
        "error_group_ids": entry.error_group_ids and _our_ids(entry.error_group_ids, "$.errorGroupIds"),
    }


def _test_session_row(document: Detail, listed: Mapping[str, Any], account_id: str | None, drift: Drift) -> Row:
    metadata = document.metadata or Metadata()
    github = metadata.github or GitHub()
    started_at = _utc(document.started_at, "$.startedAt")
    if document.stopped_at is msgspec.UNSET:
        stopped_at = listed.get("stopped_at")
    else:
        stopped_at = _utc(document.stopped_at, "$.stoppedAt")
    if document.status not in _STATUSES:
        drift.note(TEST_SESSION, "$.status", document.status)
    # A document that says RUNNING and no end is behind its list entry, or our own row: it ends nothing by theirs.
    has_ended = stopped_at is not None and (document.status != "RUNNING" or document.stopped_at is not msgspec.UNSET)

    def first(value: str | None, column: str) -> Any:
        return listed.get(column) if value is None else value

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
        "branch_name": first(metadata.branch_name, "branch_name"),
        "commit_id": first(metadata.commit_id, "commit_id"),
        "commit_owner": first(metadata.commit_owner, "commit_owner"),
        "commit_message": first(metadata.commit_message, "commit_message"),
        "github_reporting": github.reporting,
        "github_repository": github.repository,
        "github_sha": github.sha,
        "github_run_id": _text(github.run_id),
        "github_run_attempt": _text(github.run_attempt),
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
    """One row an id: the last occurrence's values at the first one's position."""
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
    # In the order of the payload, also where the last of several has groups and the first had none.
    rows.result_error_groups = [(id_, group) for id_ in by_id if id_ in groups for group in groups[id_]]
    return list(by_id.values())


def _result_row(
    raw: msgspec.Raw, test_session_id: str, position: int, drift: Drift, texts: dict[str | None, str | None]
) -> tuple[ResultRow, list[str]]:
    """One result and its error groups. `texts`: what many results say is kept once."""
    result = _decode_part(raw, Result, TEST_SESSION, drift, "$.results[]")
    if result.status not in _STATUSES:
        drift.note(TEST_SESSION, "$.results[].status", result.status)
    if result.check_type is not None and result.check_type not in _CHECK_TYPES:
        drift.note(TEST_SESSION, "$.results[].checkType", result.check_type)
    if result.result_type is not None and result.result_type not in _RESULT_TYPES:
        drift.note(TEST_SESSION, "$.results[].resultType", result.result_type)
    once = texts.setdefault
    check_id = _other_id(result.check_id, TEST_SESSION, "$.results[].checkId", drift)
    row = ResultRow(  # by place: names would take ten times as long
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
        _utc(result.started_at, "$.startedAt"),
        _utc(result.stopped_at, "$.stoppedAt"),
        result.test_session_result_link,
    )
    return row, _our_ids(result.error_group_ids, "$.errorGroupIds") if result.error_group_ids else []


# --- executions ---------------------------------------------------------------------------------------------


def _execution_rows(results: Sequence[ResultRow], session: Mapping[str, Any]) -> list[ExecutionRow]:
    """Fold results into executions, and tell each result row its execution_no."""
    keys = [_check_key(result, session["project_id"]) for result in results]
    without_sequence = {key for key, result in zip(keys, results, strict=True) if not result.sequence_id}

    executions: list[tuple[str, str, list[ResultRow]]] = []  # (check_key, grouped_by, rows), by first appearance
    by_sequence: dict[tuple[str, str], list[ResultRow]] = {}
    still_open: dict[tuple[str, str | None], list[ResultRow]] = {}
    for key, result in zip(keys, results, strict=True):
        if key not in without_sequence:
            sequence = (key, result.sequence_id or "")
            members = by_sequence.get(sequence)
            if members is None:
                members = by_sequence[sequence] = []
                executions.append((key, "sequence", members))
            members.append(result)
            continue
        place = (key, result.run_location)
        members = still_open.get(place)
        if members is None:
            members = still_open[place] = []
            executions.append((key, "inferred", members))
        members.append(result)
        if result.result_type == "FINAL":
            del still_open[place]

    rows = []
    for execution_no, (key, grouped_by, members) in enumerate(executions, 1):
        for member in members:
            member.execution_no = execution_no
        rows.append(_execution_row(execution_no, key, grouped_by, members, session))
    return rows


def _execution_row(
    execution_no: int, check_key: str, grouped_by: str, members: Sequence[ResultRow], session: Mapping[str, Any]
) -> ExecutionRow:
    final: ResultRow | None = None
    retries, retry_cost_ms, has_failed = 0, 0.0, False
    started_at: datetime | None = None
    for row in members:
        if row.result_type == "FINAL":
            final = row
        elif row.result_type == "ATTEMPT":
            retries += 1
            retry_cost_ms += _milliseconds(row.started_at, row.stopped_at) or 0.0
            has_failed = has_failed or row.status == "FAILED"
        if row.started_at is not None and (started_at is None or row.started_at < started_at):
            started_at = row.started_at
    shown = members[-1] if final is None else final
    verdict = final.status if final is not None and final.status in ("PASSED", "FAILED") else None
    stopped_at = None if final is None else final.stopped_at
    return ExecutionRow(  # by place, too
        session["test_session_id"],
        execution_no,
        check_key,
        _history_key(
            session["account_id"], check_key, session["branch_name"], session["environment"], shown.run_location
        ),
        grouped_by,
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
        shown.is_degraded,
        shown.has_errors,
        session["started_at"] if started_at is None else started_at,
        stopped_at,
        _milliseconds(shown.started_at, stopped_at),
        retry_cost_ms,
        session["account_id"],
        session["project_id"],
        session["environment"],
        session["branch_name"],
        session["commit_id"],
    )


def _check_key(result: ResultRow, project_id: str | None) -> str:
    return result.check_id or f"{project_id or '-'}:{result.check_type or ''}:{result.check_name or ''}"


def _history_key(*parts: str | None) -> str:
    # A JSON array keeps null and '' apart, and no part can run over into the next.
    return sha256(msgspec.json.encode(parts)).hexdigest()


# --- error groups -------------------------------------------------------------------------------------------


def _root_cause_analysis_row(error_group_id: str, position: int, document: RootCauseAnalysis, drift: Drift) -> Row:
    path = f"$.rootCauseAnalyses[{position - 1}]"
    try:
        whole = documents.untyped_part(document.analysis)
    except PayloadError:
        whole = documents.OutOfRange()
    if not _is_json_column(whole, _ANALYSIS_DEPTH):
        drift.note(ERROR_GROUP, "$.rootCauseAnalyses[].analysis", _shown(document.analysis))
        whole = None
    analysis = whole if isinstance(whole, dict) else {}

    def said(name: str) -> str | None:
        value = analysis.get(name)
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return {
        "error_group_id": error_group_id,
        "position": position,
        "root_cause_analysis_id": _other_id(document.id, ERROR_GROUP, "$.rootCauseAnalyses[].id", drift),
        "created_at": _utc(document.created_at, f"{path}.created_at"),
        "provider": document.provider,
        "model": document.model,
        "duration_ms": document.duration_ms,
        "classification": said("classification"),
        "user_impact": said("userImpact"),
        "root_cause": said("rootCause"),
        "code_fix": said("codeFix"),
        "analysis": whole,
    }


# --- values -------------------------------------------------------------------------------------------------


def _decode(document: Document, type_: type[S], kind: str, drift: Drift) -> S:
    """Decode, and note as drift every field that `type_` does not have."""
    text, is_cut = documents.with_short_texts(document)
    if is_cut:
        drift.note(kind, "$", f"a text of over {documents.LONGEST_TEXT} bytes, cut in its column")
    return _decode_part(msgspec.Raw(text), type_, kind, drift, "$")


def _decode_part(raw: msgspec.Raw, type_: type[S], kind: str, drift: Drift, path: str) -> S:
    """The same for a part of a document that stands at `path`."""
    try:
        return documents.decode_part(raw, type_)
    except PayloadError as error:
        with _named_fields():
            return _decode_pruned(raw, type_, kind, drift, path, error)


def _decode_pruned(raw: msgspec.Raw, type_: type[S], kind: str, drift: Drift, path: str, first: PayloadError) -> S:
    """Either illegal or only unknown: without its unknown fields it tells."""
    unknown = Drift()
    pruned = _pruned(raw, _type_info(type_), path, kind, unknown)
    if not unknown.found:
        raise first
    value = documents.decode_part(pruned, type_)
    drift.add(unknown)
    return value


_MISSING_FIELD = re.compile(r"Object missing required field `(\w+)`")


@contextmanager
def _named_fields() -> Iterator[None]:
    """A missing field is named by the path, like any other fault."""
    try:
        yield
    except PayloadError as error:
        missing = _MISSING_FIELD.fullmatch(error.reason)
        if missing is None:
            raise
        raise PayloadError(f"{error.json_path}.{missing[1]}", "is missing") from None


@functools.cache
def _type_info(type_: type[msgspec.Struct]) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(type_)


def _pruned(raw: msgspec.Raw, type_: msgspec.inspect.Type, path: str, kind: str, drift: Drift) -> msgspec.Raw:
    """Without what the type does not know (noted), at any depth. What is no such value at all stays as it is."""
    if isinstance(type_, msgspec.inspect.UnionType):
        for option in type_.types:
            raw = _pruned(raw, option, path, kind, drift)
        return raw
    try:
        if isinstance(type_, msgspec.inspect.ListType) and _holds_structs(type_.item_type):
            items = documents.decode_part(raw, list[msgspec.Raw])
            return _encoded([_pruned(item, type_.item_type, f"{path}[]", kind, drift) for item in items])
        if isinstance(type_, msgspec.inspect.StructType):
            fields = documents.decode_part(raw, dict[str, msgspec.Raw])
            known = {field.encode_name: field.type for field in type_.fields}
            for name in [name for name in fields if name not in known]:
                drift.note(kind, f"{path}.{name}", _shown(fields.pop(name)))
            return _encoded(
                {name: _pruned(item, known[name], f"{path}.{name}", kind, drift) for name, item in fields.items()}
            )
    except PayloadError as error:
        if error.reason == documents.NESTED:
            raise
        # Of another type: whoever decodes it says so.
    return raw


def _holds_structs(type_: msgspec.inspect.Type) -> bool:
    return isinstance(type_, msgspec.inspect.StructType)


def _encoded(value: list[msgspec.Raw] | dict[str, msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _our_ids(values: Iterable[str], json_path: str) -> list[str]:
    return list(dict.fromkeys(our_id(value, f"{json_path}[{i}]") for i, value in enumerate(values)))


def _other_id(value: str | None, kind: str, json_path: str, drift: Drift) -> str | None:
    """An id that is no key of ours: no UUID becomes null plus drift."""
    if value is None or UUID.fullmatch(value):
        return value
    lowered = value.lower()
    if UUID.fullmatch(lowered):
        return lowered
    drift.note(kind, json_path, value)
    return None


def _count(value: float | None, kind: str, json_path: str, drift: Drift) -> int | None:
    """A whole number that a column can hold: any other becomes null plus drift."""
    if value is None or (value.is_integer() and 0 <= value < 2**31):
        return None if value is None else int(value)
    drift.note(kind, json_path, str(value))
    return None


def _utc(value: datetime | None, json_path: str) -> datetime | None:
    """In UTC; one without an offset is taken as UTC."""
    if value is None or value.tzinfo is UTC:
        return value
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise PayloadError(json_path, "lies outside of the years 1 to 9999 in UTC") from None


def _is_json_column(value: Any, depth: int) -> bool:
    """Whether a value can stand in a JSON column: nested in at most `depth` levels, every number in range.

    Without recursion, because the value may be as deep as a sender likes.
    """
    level = [value]
    for _ in range(depth + 1):
        if any(isinstance(item, documents.OutOfRange) for item in level):
            return False
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return True
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return False


def _shown(raw: msgspec.Raw) -> str:
    """The beginning of an example: a text as it is, anything else as JSON."""
    text = bytes(memoryview(raw)[: 4 * _EXAMPLE_LENGTH]).decode(errors="ignore")
    try:
        return documents.decode_part(raw, str) if text.startswith('"') else text
    except PayloadError:
        return text


# What of a word that is a URL comes before its query string or fragment; `tests//pay#1.ts` is none.
_SIGNED = re.compile(r"((?:(?<=:)|(?<![\w/]))//[^\s?#]*)[?#]\S*")
_ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)")


def _unescaped(json: str) -> str:
    """About what a piece of JSON says, whose end may be cut off."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[0][1], json)


def _may_be_signed(text: str) -> bool:
    """Whether a word of it is a URL with a query string or a fragment."""
    return _SIGNED.search(text) is not None


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def _milliseconds(started_at: datetime | None, stopped_at: datetime | None) -> float | None:
    if started_at is None or stopped_at is None:
        return None
    return (stopped_at - started_at) / _MILLISECOND

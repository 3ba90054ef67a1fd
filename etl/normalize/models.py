"""Documents as Checkly describes them: which fields there are, and of which type.

A field of type `msgspec.Raw` is known and not decoded with the rest. Source of every field:
https://developers.checklyhq.com/reference (test sessions, test session error groups).
"""

from __future__ import annotations

from datetime import datetime

import msgspec

NULL = msgspec.Raw(b"null")


class Described(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Base of all documents. Unknown fields are refused, so that `values.decode` can note them as drift."""


class GitHub(Described):
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


class Metadata(Described):
    environment: str | None = None
    repo_url: str | None = None
    commit_id: str | None = None
    commit_owner: str | None = None
    commit_message: str | None = None
    branch_name: str | None = None
    github: GitHub | None = None


class Result(Described):
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


class Detail(Described):
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


class ResultDetail(Described):
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
    created_at: msgspec.Raw = msgspec.field(default=NULL, name="created_at")
    updated_at: msgspec.Raw = msgspec.field(default=NULL, name="updated_at")
    # The session's document has these fields too. It is newer, so its values win.
    test_session_result_link: msgspec.Raw = NULL
    check_id: msgspec.Raw = NULL
    check_type: msgspec.Raw = NULL
    name: msgspec.Raw = NULL
    run_location: msgspec.Raw = NULL
    error_group_ids: msgspec.Raw = NULL
    result_type: msgspec.Raw = NULL
    status: msgspec.Raw = NULL
    has_errors: msgspec.Raw = NULL
    has_failures: msgspec.Raw = NULL
    is_degraded: msgspec.Raw = NULL
    aborted: msgspec.Raw = NULL
    response_time: msgspec.Raw = NULL
    started_at: msgspec.Raw = NULL
    stopped_at: msgspec.Raw = NULL


class Invoker(Described):
    name: str | None = None
    picture: msgspec.Raw = NULL


class Summary(Described):
    """One entry of `GET /v1/test-sessions`."""

    id: str
    account_id: str | None = None
    project_id: str | None = None
    name: str | None = None
    provider: str | None = None
    error_group_ids: list[str] | None = None
    running: msgspec.Raw = NULL
    passed: msgspec.Raw = NULL
    failed: msgspec.Raw = NULL
    cancelled: msgspec.Raw = NULL
    status: msgspec.Raw = NULL
    region: str | None = None
    private_location_id: str | None = None
    invoker: Invoker | None = None
    repo_url: str | None = None
    commit_id: str | None = None
    commit_owner: str | None = None
    commit_message: str | None = None
    branch_name: str | None = None
    environment: str | None = None
    started_at: msgspec.Raw = NULL
    stopped_at: datetime | None = None
    created_at: datetime | None = msgspec.field(default=None, name="created_at")
    updated_at: datetime | None = msgspec.field(default=None, name="updated_at")


class PlaywrightTest(Described):
    project_name: str | None = None
    spec_id: str | int | None = None
    test_file: str | None = None
    test_title: str | None = None
    suite_path: list[str] | None = None


class RootCauseAnalysis(Described):
    id: str | None = None
    created_at: datetime | None = msgspec.field(default=None, name="created_at")
    analysis: msgspec.Raw = NULL
    provider: str | None = None
    model: str | None = None
    duration_ms: float | None = None
    user_context: msgspec.Raw = NULL


class ErrorGroup(Described):
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


class EntryKey(msgspec.Struct):
    """The part of a list entry that discovery needs; any list."""

    id: str
    account_id: msgspec.Raw = msgspec.field(default=NULL, name="accountId")
    created_at: msgspec.Raw = NULL

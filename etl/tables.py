"""The warehouse's tables: names, types, keys, indexes and what every column means. No verbs.

Hides how a UUID, a UTC time and a JSON value are stored on PostgreSQL and on SQLite. A column that is
added here needs `etl/normalize` and one migration, nothing else. Comments reach BI tools on PostgreSQL
and `docs/warehouse.md`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """`timestamptz` on PostgreSQL; `YYYY-MM-DD HH:MM:SS.ffffff` in UTC on SQLite, so that text order is time order.

    Takes aware datetimes only: a naive one is a bug that would shift history by hours.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(_SqliteTime())  # type: ignore[no-untyped-call]
        return super().load_dialect_impl(dialect)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is UTC:
            return value
        if value.tzinfo is None:
            raise ValueError("a time without a zone must not reach the warehouse")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo is UTC else value.astimezone(UTC)


class _SqliteTime(sqlite.DATETIME):
    """The same text as SQLAlchemy's, in a fifth of the time; UTC in, UTC out."""

    def bind_processor(self, dialect: Dialect) -> Any:
        return lambda value: value and value.isoformat(" ", "microseconds")[:26]

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return lambda value: value and datetime.fromisoformat(value).replace(tzinfo=UTC)


# Ids are lower-case text with hyphens in Python and on SQLite, native on PostgreSQL.
Id = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
# What CHECK_HASH and UTC_DAY of the views give (schema.py).
Day = Date().with_variant(String(10), "sqlite")
CheckHash = Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def _key(name: str, type_: Any, comment: str) -> Column[Any]:
    return Column(name, type_, primary_key=True, autoincrement=False, comment=comment)


def _need(name: str, type_: Any, comment: str) -> Column[Any]:
    return Column(name, type_, nullable=False, comment=comment)


def _may(name: str, type_: Any, comment: str) -> Column[Any]:
    return Column(name, type_, nullable=True, comment=comment)


def _child_of_test_session() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["test_session_id"], ["test_sessions.test_session_id"], ondelete="CASCADE")


def _refers_to_error_group(**options: Any) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["error_group_id"], ["error_groups.error_group_id"], **options)


_TEST_SESSION = "Checkly's id of the test session, lower case."

test_sessions = Table(
    "test_sessions",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _may("account_id", Id, "Account that it was fetched with, until a list entry says otherwise."),
    _may("project_id", Id, "Checkly project; only the list knows it."),
    _may("name", Text, "Name given by the CLI, the reporter or the trigger."),
    _need("status", Text, "Checkly's status, verbatim: RUNNING, PASSED, FAILED, CANCELLED or newer ones."),
    _need("is_final", Boolean, "PASSED, FAILED, CANCELLED, or any other status with a stopped_at."),
    _may("provider", Text, "What started it: GITHUB, VERCEL, API, TRIGGER, PW_REPORTER …; list only."),
    _may("region", Text, "Region that it was started for; list only."),
    _may("private_location_id", Id, "Private location that it was started for; list only."),
    _may("invoker_name", Text, "Person or token that started it; list only."),
    _may("environment", Text, "Environment as the run named it."),
    _may("repo_url", Text, "Repository of the tested code."),
    _may("branch_name", Text, "Git branch."),
    _may("commit_id", Text, "Git commit."),
    _may("commit_owner", Text, "Author of the commit."),
    _may("commit_message", Text, "Message of the commit."),
    _may("github_reporting", Boolean, "Whether results are reported back to GitHub."),
    _may("github_repository", Text, "owner/name on GitHub."),
    _may("github_sha", Text, "Commit that GitHub ran on."),
    _may("github_run_id", Text, "GitHub Actions run id."),
    _may("github_run_attempt", Text, "GitHub Actions run attempt."),
    _may("github_workflow", Text, "GitHub Actions workflow."),
    _may("github_job", Text, "GitHub Actions job."),
    _may("github_event_name", Text, "GitHub event: push, pull_request …"),
    _may("github_ref", Text, "Git ref that triggered the workflow."),
    _may("github_head_ref", Text, "Source branch of the pull request."),
    _may("github_base_ref", Text, "Target branch of the pull request."),
    _may("github_server_url", Text, "GitHub server."),
    _need("started_at", UtcTime, "When the test session started."),
    _may("stopped_at", UtcTime, "When it ended; null while it runs."),
    _may("time_elapsed_ms", Double, "Checkly's own measure of its duration, milliseconds."),
    _may("link", Text, "Page of the test session at Checkly."),
    _may("created_at", UtcTime, "Checkly's creation time; null when known by id only."),
    _may("updated_at", UtcTime, "Checkly's time of the last change; null when known by id only."),
    _need("first_exported_at", UtcTime, "When it first reached this warehouse."),
    _need("exported_at", UtcTime, "When any row of it was last written: reload downstream models by it."),
    _may("etl_run_id", Id, "Run that last wrote it (etl_runs)."),
    _need("payload_sha256", String(64), "Hash of the detail document as received."),
    _may("summary_sha256", String(64), "Hash of the list entry as received; null when known by id only."),
    Index("ix_test_sessions_started_at", "started_at"),
    Index("ix_test_sessions_exported_at", "exported_at"),
    Index(
        "ix_test_sessions_not_final",
        "started_at",
        postgresql_where=text("NOT is_final"),
        sqlite_where=text("NOT is_final"),
    ),
    comment="One row a test session: one run of many checks, from the list entry and the detail document.",
)

test_session_results = Table(
    "test_session_results",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _key("test_session_result_id", Id, "Checkly's id of the result, lower case."),
    _need("position", Integer, "Place in the payload, from 1."),
    _may(
        "execution_no",
        Integer,
        "The execution (check_executions); null for a row that only an earlier RUNNING payload held.",
    ),
    _may("check_id", Id, "Checkly's id of the check; null for checks that exist in the run only."),
    _may("check_type", Text, "Checkly's check type, verbatim."),
    _may("check_name", Text, "Name of the check at the time of the run."),
    _may("run_location", Text, "Region or private location that it ran in."),
    _may("result_type", Text, "FINAL, ATTEMPT (an earlier failed try) or PENDING (not run yet)."),
    _need("status", Text, "Checkly's status, verbatim."),
    _may("has_errors", Boolean, "The run could not be carried out properly."),
    _may("has_failures", Boolean, "An assertion failed."),
    _may("is_degraded", Boolean, "Slower than its limit for degraded."),
    _may("is_aborted", Boolean, "Stopped before its end."),
    _may(
        "response_time_ms",
        Double,
        "Checkly's responseTime, milliseconds; means another thing per check type.",
    ),
    _may("started_at", UtcTime, "When the run of the check started."),
    _may("stopped_at", UtcTime, "When it ended."),
    _may("link", Text, "Page of the result at Checkly."),
    _may("details_fetched_at", UtcTime, "When the result's own document was read; null if it was not."),
    _may("sequence_id", Id, "One per execution, shared by its attempts; from the result's document."),
    _may("attempts", Integer, "Attempts so far; from the result's document."),
    _may("file_path", Text, "File that defines the check; from the result's document."),
    _may("private_location_id", Id, "Private location; from the result's document."),
    _may("over_max_response_time", Boolean, "Slower than its limit; from the result's document."),
    _may("is_cancelled", Boolean, "Cancelled; from the result's document."),
    _may("schedule_error", Text, "Why it could not be scheduled; from the result's document."),
    _may("trace_id", Text, "Trace id; from the result's document."),
    _child_of_test_session(),
    comment="One row a result as Checkly reports it: attempts are rows of their own.",
)

check_executions = Table(
    "check_executions",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _key("execution_no", Integer, "From 1 by the least position of its rows; no stable id outside of this session."),
    _need(
        "check_key",
        Text,
        "check_id, else <project_id or ->:<check_type>:<check_name or empty>, and :<file_path> for a twin.",
    ),
    _need("history_key", String(64), "Hash of account, check_key, branch, environment and run location."),
    _need("grouped_by", Text, "sequence (Checkly's own grouping) or inferred (from times and locations)."),
    _need("test_session_result_id", Id, "The FINAL result, else the last one."),
    _may("link", Text, "Page of that result at Checkly."),
    _may("check_id", Id, "Checkly's id of the check."),
    _may("check_name", Text, "Name of the check at the time of the run."),
    _may("check_type", Text, "Checkly's check type, verbatim."),
    _may("run_location", Text, "Region or private location that it ran in."),
    _need("status", Text, "Checkly's status of that result, verbatim."),
    _may("verdict", Text, "PASSED (FINAL PASSED or DEGRADED), FAILED (FINAL FAILED or TIMED_OUT); null: undecided."),
    _need("retries", Integer, "ATTEMPT rows folded into it."),
    _need("is_retry_flaky", Boolean, "A failed ATTEMPT, then verdict PASSED."),
    _may("is_degraded", Boolean, "Slower than its limit for degraded."),
    _may("has_errors", Boolean, "The run could not be carried out properly."),
    _need("started_at", UtcTime, "Earliest start of its rows, else the session's."),
    _may("stopped_at", UtcTime, "End of the FINAL; null without one."),
    Column(
        "is_ambiguous",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="Another check without an id has this name here, and no file path tells them apart: which one it is "
        "is not known.",
    ),
    _may("duration_ms", Double, "stopped_at - started_at of the FINAL, milliseconds; null without one."),
    _need("retry_cost_ms", Double, "Time that its ATTEMPT rows took, milliseconds."),
    _may("account_id", Id, "Copied from the session."),
    _may("project_id", Id, "Copied from the session."),
    _may("environment", Text, "Copied from the session."),
    _may("branch_name", Text, "Copied from the session."),
    _may("commit_id", Text, "Copied from the session."),
    _child_of_test_session(),
    # No btree on check_key or branch_name: its entries hold 2,704 bytes and either may be an essay (decision 0004).
    # Branches are found by a bloom filter a range of pages, checks by a hash of theirs: that index, and the one on
    # UTC days, are over expressions and stand in migration 0004.
    Index("ix_check_executions_check_id_started_at", "check_id", "started_at"),
    Index("ix_check_executions_history_key_started_at", "history_key", "started_at"),
    Index("ix_check_executions_started_at", "started_at", postgresql_using="brin"),
    Index(
        "ix_check_executions_branch_name",
        "branch_name",
        postgresql_using="brin",
        postgresql_ops={"branch_name": "text_bloom_ops"},
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
    comment="One row an execution of a check, its attempts folded; rebuilt from the session's latest payload.",
)

error_groups = Table(
    "error_groups",
    metadata,
    _key("error_group_id", Id, "Checkly's id of the error group, lower case."),
    _may("account_id", Id, "Account of the session that it was first seen in."),
    _may("project_id", Id, "Checkly project."),
    _may("error_hash", Text, "Checkly's hash of the cleaned message."),
    _may("raw_error_message", Text, "The message as recorded."),
    _may("cleaned_error_message", Text, "The message that groups: without ids, times and numbers."),
    _may("first_seen", UtcTime, "When Checkly first saw it."),
    _may("last_seen", UtcTime, "When Checkly last saw it, as of fetched_at."),
    _may("archived_until_next_event", Boolean, "Hidden at Checkly until it happens again."),
    _may("fetched_at", UtcTime, "When its document was read or found gone; null: known by id only."),
    _may("stale_since", UtcTime, "Since when it is to be read again, as a newer session refers to it; else null."),
    Index(
        "ix_error_groups_to_fetch",
        "error_group_id",
        postgresql_where=text("fetched_at IS NULL OR stale_since IS NOT NULL"),
        sqlite_where=text("fetched_at IS NULL OR stale_since IS NOT NULL"),
    ),
    comment="One row an error group: failures that share a cleaned message.",
)

error_group_environments = Table(
    "error_group_environments",
    metadata,
    _key("error_group_id", Id, "The error group."),
    _key("environment", Text, "Environment that it was observed in."),
    _refers_to_error_group(ondelete="CASCADE"),
    comment="Environments that an error group was observed in.",
)

error_group_playwright_tests = Table(
    "error_group_playwright_tests",
    metadata,
    _key("error_group_id", Id, "The error group."),
    _key("position", Integer, "Place in the document, from 1."),
    _may("project_name", Text, "Playwright project."),
    _may("spec_id", Text, "Playwright's id of the spec."),
    _may("test_file", Text, "File of the test."),
    _may("test_title", Text, "Title of the test."),
    _may("suite_path", Json, "Titles of the enclosing suites, an array."),
    _refers_to_error_group(ondelete="CASCADE"),
    comment="Playwright tests that an error group occurred in.",
)

error_group_root_cause_analyses = Table(
    "error_group_root_cause_analyses",
    metadata,
    _key("error_group_id", Id, "The error group."),
    _key("position", Integer, "Place in the document, from 1."),
    _may("root_cause_analysis_id", Id, "Checkly's id of the analysis."),
    _may("created_at", UtcTime, "When it was made."),
    _may("provider", Text, "Provider of the language model."),
    _may("model", Text, "Language model."),
    _may("duration_ms", Double, "Time that it took, milliseconds."),
    _may("classification", Text, "From the analysis."),
    _may("user_impact", Text, "From the analysis."),
    _may("root_cause", Text, "From the analysis."),
    _may("code_fix", Text, "From the analysis."),
    _may("analysis", Json, "The whole analysis."),
    _refers_to_error_group(ondelete="CASCADE"),
    comment="Root cause analyses that Checkly made of an error group.",
)

test_session_error_groups = Table(
    "test_session_error_groups",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _key("error_group_id", Id, "Error group observed in it."),
    _child_of_test_session(),
    _refers_to_error_group(),
    Index("ix_test_session_error_groups_error_group_id", "error_group_id"),
    comment="Error groups observed in a test session.",
)

test_session_result_error_groups = Table(
    "test_session_result_error_groups",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _key("test_session_result_id", Id, "The result."),
    _key("error_group_id", Id, "Error group observed in it."),
    _child_of_test_session(),
    _refers_to_error_group(),
    Index("ix_test_session_result_error_groups_error_group_id", "error_group_id"),
    comment="Error groups observed in a result.",
)

etl_queue = Table(
    "etl_queue",
    metadata,
    _key("test_session_id", Id, "The test session to fetch; no row: nothing to do."),
    _may("account_id", Id, "Account to fetch it with; null until assigned."),
    _need("state", Text, "queued, leased, dead or discarded."),
    _need("priority", SmallInteger, "Higher first."),
    _need(
        "claim_order",
        Double,
        "Greater first within a priority: seconds of the creation time, negative for the oldest first.",
    ),
    _need("source", Text, "discovery, backfill, enqueue, inbox or settle."),
    _need("attempts", Integer, "Failures that a worker reported since the last success."),
    _need("available_at", UtcTime, "Not before this time; for a leased row the end of the lease."),
    _may("claim_token", Id, "Token of the claim that may ack it; null unless leased."),
    _may("claimed_by", Text, "Host and process of the claim, to see at once when it died; null unless leased."),
    _need("enqueued_at", UtcTime, "Since when it has been waiting."),
    _may("session_created_at", UtcTime, "Checkly's creation time; null when known by id only."),
    _may("summary", Text, "The list entry as received, until it is saved with its detail."),
    _may("summary_sha256", String(64), "Hash of the list entry."),
    _may(
        "asked_accounts",
        Text,
        "Accounts that do not have it, for an id that named no account (ids with commas between, empty: none yet).",
    ),
    _may("error_kind", Text, "What kept it from being exported last time, one word."),
    _may("last_error", Text, "The same in a sentence."),
    _may("last_error_at", UtcTime, "When that was."),
    # The claim's own order, read backwards; leased rows are in it because an expired lease is claimed again.
    Index(
        "ix_etl_queue_claim",
        "priority",
        "claim_order",
        "test_session_id",
        postgresql_where=text("state IN ('queued', 'leased')"),
        sqlite_where=text("state IN ('queued', 'leased')"),
    ),
    comment="Work to do: one row a test session that is to be fetched, or that could not be.",
)

etl_result_details_due = Table(
    "etl_result_details_due",
    metadata,
    _key("test_session_id", Id, "The test session, saved already."),
    _key("test_session_result_id", Id, "Its result whose own document is to be read; no row: nothing to do."),
    _need("account_id", Id, "Account to fetch it with."),
    _need("attempts", Integer, "Failures so far."),
    _need("available_at", UtcTime, "Not before this time; while a process reads it, the end of its lease."),
    # The claim's own order: first come, first served, so that what retention takes first is read first.
    Index(
        "ix_etl_result_details_due_claim",
        "account_id",
        "available_at",
        "test_session_id",
        "test_session_result_id",
    ),
    comment="Work to do: one row a result whose details are to be read (export.result_details).",
)

etl_runs = Table(
    "etl_runs",
    metadata,
    _key("etl_run_id", Id, "The run."),
    _need("command", Text, "sync, backfill or replay."),
    _need("process", Text, "Host and process that ran it."),
    _need("started_at", UtcTime, "When it started."),
    _need("heartbeat_at", UtcTime, "When it last wrote; an old one without an outcome was killed."),
    _may("finished_at", UtcTime, "When it ended; null while it runs."),
    _may("outcome", Text, "ok, partial, failed or interrupted; null while it runs."),
    _may("error", Text, "What went wrong."),
    _need("test_sessions_saved", Integer, "Test sessions written."),
    _need("test_sessions_unchanged", Integer, "Test sessions fetched and found unchanged."),
    _need("test_sessions_dead", Integer, "Test sessions that became dead letters."),
    _need("results_saved", Integer, "Result rows written."),
    _need("api_requests", Integer, "HTTP requests sent."),
    _need("api_retries", Integer, "HTTP requests that repeated a failed one."),
    _need("throttled_ms", BigInteger, "Milliseconds spent waiting for the rate budget or a pause."),
    Index("ix_etl_runs_started_at", "started_at"),
    comment="One row a run of sync, backfill or replay.",
)

etl_accounts = Table(
    "etl_accounts",
    metadata,
    _key("account_id", Id, "The Checkly account."),
    _may("name", Text, "Its name in the settings."),
    _may("retention", BigInteger, "Seconds that Checkly keeps its results, from the settings."),
    _may("discovered_until", UtcTime, "Sessions created before are in the queue or in the warehouse."),
    _may("last_success_at", UtcTime, "End of the last pass without a failure."),
    _may("discovery_token", Id, "Token of the process that discovers now."),
    _may("discovery_process", Text, "Host and process of that token."),
    _may("discovery_leased_until", UtcTime, "End of its lease."),
    _may("paused_until", UtcTime, "The API asked for silence until then."),
    _need("pauses", Integer, "429s without Retry-After since the last answer: doubles the next pause."),
    comment="One row an account: how far discovery came, its lease, rate budget and pause.",
)

etl_rate_grants = Table(
    "etl_rate_grants",
    metadata,
    _key("account_id", Id, "The Checkly account."),
    _key("granted_at", UtcTime, "When they were granted, by the database's clock."),
    _need("calls", Integer, "Calls granted at that time."),
    comment="The sliding window of the rate budget: calls granted in the last 61 seconds.",
)

etl_inboxes = Table(
    "etl_inboxes",
    metadata,
    _key("inbox", Text, "The source as the settings name it, without a password."),
    _may("position", Text, "How far a file was read, and how to know it again (JSON); null for a broker."),
    _may("last_read_at", UtcTime, "When it could last be read to its end."),
    _may("last_received_at", UtcTime, "When something last came."),
    _may("last_error", Text, "Why it could not be read last time; null if it could."),
    _may("reader_token", Id, "Token of the process that reads it now."),
    _may("reader_process", Text, "Host and process of that token."),
    _may("reader_leased_until", UtcTime, "End of its lease."),
    comment="One row an inbox: one process at a time reads it, and a file from where the last one ended.",
)

etl_inbox_rejects = Table(
    "etl_inbox_rejects",
    metadata,
    _key("inbox", Text, "The inbox that it came from."),
    _key("sha256", String(64), "Hash of the message: one that comes again is kept once."),
    _need("received_at", UtcTime, "When it first came."),
    _need("text", Text, "The message, cut to 64,000 characters."),
    Index("ix_etl_inbox_rejects_received_at", "received_at"),
    comment="Messages of inboxes that hold no test session id. The newest thousand are kept.",
)

etl_payloads = Table(
    "etl_payloads",
    metadata,
    _key("kind", Text, "test_session, test_session_summary, test_session_result or error_group."),
    _key("document_id", Id, "Id of the document within its kind."),
    _may("account_id", Id, "Account that it was fetched with."),
    _may("test_session_id", Id, "The session that it belongs to; null for an error group."),
    _need("body", Text, "The document as received; of a result without sections (logs, requests) and signed URLs."),
    _need("sha256", String(64), "Hash of the body."),
    _need("fetched_at", UtcTime, "When it was received."),
    Index("ix_etl_payloads_test_session_id", "test_session_id"),
    comment="The latest document of each kind and id, as received: replay rebuilds every row from them.",
)

etl_drift = Table(
    "etl_drift",
    metadata,
    _key("kind", Text, "Kind of document."),
    _key("json_path", Text, "Where in the document."),
    _need("first_seen_at", UtcTime, "When it was first seen."),
    _need("last_seen_at", UtcTime, "When it was last seen."),
    _need("occurrences", BigInteger, "How often."),
    _may("example", Text, "One value, cut to 200 characters."),
    comment="Fields and values of the API that the typed columns do not know yet.",
)

etl_views = Table(
    "etl_views",
    metadata,
    _key("view_name", Text, "The view."),
    _need("sha256", String(64), "Hash of the text that it was created from."),
    comment="Texts of the views, by hash: tells whether the schema is current without alembic.",
)

etl_replay_due = Table(
    "etl_replay_due",
    metadata,
    _key("revision", String(32), "The revision of the schema since which documents are read otherwise."),
    _need("reason", Text, "What a replay changes."),
    comment="One row per reason why checkly-etl replay is due; a replay that came to its end deletes them.",
)

# --- rollups ------------------------------------------------------------------------------------------------
# What views read instead of counting again. Triggers (triggers/*.sql) drop what was made of rows that are written;
# `etl/rollups.py` makes it anew from the views etl_live_….

etl_checks = Table(
    "etl_checks",
    metadata,
    _key("check_hash", CheckHash, "Hash of account and check_key."),
    _may("account_id", Id, "The account."),
    _need("check_key", Text, "As in check_executions."),
    _may(
        "rolled_up_for",
        Day,
        "UTC day for which its rollups are right; null: touched since.",
    ),
    _may("has_streaks", Boolean, "Whether etl_rollup_failure_streaks holds all of its history; null: touched since."),
    _may(
        "check_id",
        Id,
        "Checkly's id of the check; this and the rest are right while rolled_up_for is.",
    ),
    _may("check_name", Text, "Name of the check in its newest execution."),
    _may("check_type", Text, "Type of the check in its newest execution."),
    _may("project_id", Id, "Project of the newest execution that has one."),
    _may("first_started_at", UtcTime, "Start of its first execution."),
    _may("last_started_at", UtcTime, "Start of its newest execution."),
    _may("last_verdict", Text, "Verdict of its newest decided execution."),
    _may("ambiguous", BigInteger, "Its ambiguous executions."),
    comment="One row a check that ever ran; short keys for joins.",
)

etl_days = Table(
    "etl_days",
    metadata,
    _key("day", Day, "A UTC day on which an execution started."),
    _may("is_rolled_up", Boolean, "Whether etl_rollup_check_daily holds all of it; null: too old for that."),
    comment="One row a UTC day with executions.",
)

etl_rollup_check_daily = Table(
    "etl_rollup_check_daily",
    metadata,
    _need("day", Day, "As in v_check_daily, like the rest."),
    _need("check_hash", CheckHash, "The check."),
    _may("account_id", Id, "See v_check_daily."),
    _need("check_key", Text, "See v_check_daily."),
    _may("branch_name", Text, "See v_check_daily."),
    _may("environment", Text, "See v_check_daily."),
    _may("run_location", Text, "See v_check_daily."),
    _need("executions", BigInteger, "See v_check_daily."),
    _need("decided", BigInteger, "See v_check_daily."),
    _need("passed", BigInteger, "See v_check_daily."),
    _need("failed", BigInteger, "See v_check_daily."),
    _need("errored", BigInteger, "See v_check_daily."),
    _need("retry_flaky", BigInteger, "See v_check_daily."),
    _need("degraded", BigInteger, "See v_check_daily."),
    _need("retry_cost_ms", Double, "See v_check_daily."),
    _need("passed_duration_ms_sum", Double, "See v_check_daily."),
    _need("passed_duration_n", BigInteger, "See v_check_daily."),
    _may("p50_duration_ms", Double, "See v_check_daily."),
    _may("p95_duration_ms", Double, "See v_check_daily."),
    Index("ix_etl_rollup_check_daily_day", "day"),
    Index("ix_etl_rollup_check_daily_check_hash", "check_hash"),
    comment="Rows of v_check_daily for the days that etl_days says.",
)

etl_rollup_flaky_checks = Table(
    "etl_rollup_flaky_checks",
    metadata,
    _key("check_hash", CheckHash, "The check."),
    _need("executions", BigInteger, "See v_flaky_checks."),
    _need("decided", BigInteger, "See v_flaky_checks."),
    _need("retry_flaky", BigInteger, "See v_flaky_checks."),
    _need("commits", BigInteger, "See v_flaky_checks."),
    _need("commit_flaky", BigInteger, "See v_flaky_checks."),
    _need("comparable", BigInteger, "See v_flaky_checks."),
    _need("flips", BigInteger, "See v_flaky_checks."),
    _need("ambiguous", BigInteger, "See v_flaky_checks."),
    comment="Rows of v_flaky_checks for the checks and the day that etl_checks says.",
)

etl_rollup_duration_regressions = Table(
    "etl_rollup_duration_regressions",
    metadata,
    _need("check_hash", CheckHash, "The check."),
    _may("environment", Text, "See v_duration_regressions."),
    _may("run_location", Text, "See v_duration_regressions."),
    _may("recent_p95_duration_ms", Double, "See v_duration_regressions."),
    _may("baseline_p95_duration_ms", Double, "See v_duration_regressions."),
    _need("recent_n", BigInteger, "See v_duration_regressions."),
    _need("baseline_n", BigInteger, "See v_duration_regressions."),
    _need("baseline_days", BigInteger, "See v_duration_regressions."),
    Index("ix_etl_rollup_duration_regressions_check_hash", "check_hash"),
    comment="Rows of v_duration_regressions for the checks and the day that etl_checks says.",
)

etl_rollup_failure_streaks = Table(
    "etl_rollup_failure_streaks",
    metadata,
    _need("check_hash", CheckHash, "The check."),
    _may("branch_name", Text, "See v_failure_streaks."),
    _may("environment", Text, "See v_failure_streaks."),
    _may("run_location", Text, "See v_failure_streaks."),
    _need("first_failed_at", UtcTime, "See v_failure_streaks."),
    _need("last_failed_at", UtcTime, "See v_failure_streaks."),
    _may("recovered_at", UtcTime, "See v_failure_streaks."),
    _need("failures", BigInteger, "See v_failure_streaks."),
    _may("time_to_fix_ms", BigInteger, "See v_failure_streaks."),
    _need("first_failed_test_session_id", Id, "See v_failure_streaks."),
    _may("first_failed_commit_id", Text, "See v_failure_streaks."),
    _may("recovered_test_session_id", Id, "See v_failure_streaks."),
    _may("recovered_commit_id", Text, "See v_failure_streaks."),
    _may("link", Text, "See v_failure_streaks."),
    Index("ix_etl_rollup_failure_streaks_check_hash", "check_hash"),
    comment="Rows of v_failure_streaks for the checks that etl_checks says.",
)

etl_rollup_error_group_impact = Table(
    "etl_rollup_error_group_impact",
    metadata,
    _key("error_group_id", Id, "The error group."),
    _need("rolled_up_for", Day, "The UTC day for which the row is right."),
    _need("occurrences", BigInteger, "See v_error_group_impact."),
    _need("test_sessions", BigInteger, "See v_error_group_impact."),
    _need("checks", BigInteger, "See v_error_group_impact."),
    _need("branches", BigInteger, "See v_error_group_impact."),
    _need("environments", BigInteger, "See v_error_group_impact."),
    _may("first_observed_at", UtcTime, "See v_error_group_impact."),
    _may("last_observed_at", UtcTime, "See v_error_group_impact."),
    _need("occurrences_7d", BigInteger, "See v_error_group_impact."),
    _need("is_new", Boolean, "See v_error_group_impact."),
    _need("is_regression", Boolean, "See v_error_group_impact."),
    comment="Rows of v_error_group_impact.",
)

etl_touched_error_groups = Table(
    "etl_touched_error_groups",
    metadata,
    _need("error_group_id", Id, "The error group."),
    Index("ix_etl_touched_error_groups_error_group_id", "error_group_id"),
    comment="Error groups whose rollup is no longer right; only added to, so that no writer waits for another.",
)

etl_rollup_test_session_summary = Table(
    "etl_rollup_test_session_summary",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _need("executions", BigInteger, "See v_test_session_summary."),
    _need("passed", BigInteger, "See v_test_session_summary."),
    _need("failed", BigInteger, "See v_test_session_summary."),
    _need("undecided", BigInteger, "See v_test_session_summary."),
    _need("retry_flaky", BigInteger, "See v_test_session_summary."),
    _need("degraded", BigInteger, "See v_test_session_summary."),
    _need("retries", BigInteger, "See v_test_session_summary."),
    _need("retry_cost_ms", Double, "See v_test_session_summary."),
    comment="What the executions of a test session came to. A row: its error occurrences are right, too.",
)

etl_rollup_error_occurrences = Table(
    "etl_rollup_error_occurrences",
    metadata,
    _key("test_session_id", Id, _TEST_SESSION),
    _key("test_session_result_id", Id, "The result."),
    _key("error_group_id", Id, "Error group observed in it."),
    _may("check_hash", CheckHash, "The check; null for a result that is in no execution."),
    Index("ix_etl_rollup_error_occurrences_check_hash", "check_hash"),
    Index("ix_etl_rollup_error_occurrences_error_group_id", "error_group_id"),
    comment="Which check each link of test_session_result_error_groups is of, for v_error_occurrences.",
)

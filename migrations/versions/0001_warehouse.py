"""The warehouse: test sessions, results, executions, error groups, and the tables of operation.

Revision: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# As etl/tables.py meant them at this revision; repeated here, because that file moves on.
ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "error_groups",
        sa.Column(
            "error_group_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the error group, lower case.",
        ),
        sa.Column("account_id", ID, nullable=True, comment="Account of the session that it was first seen in."),
        sa.Column("project_id", ID, nullable=True, comment="Checkly project."),
        sa.Column("error_hash", sa.Text(), nullable=True, comment="Checkly's hash of the cleaned message."),
        sa.Column("raw_error_message", sa.Text(), nullable=True, comment="The message as recorded."),
        sa.Column(
            "cleaned_error_message",
            sa.Text(),
            nullable=True,
            comment="The message that groups: without ids, times and numbers.",
        ),
        sa.Column("first_seen", TIME, nullable=True, comment="When Checkly first saw it."),
        sa.Column("last_seen", TIME, nullable=True, comment="When Checkly last saw it, as of fetched_at."),
        sa.Column(
            "archived_until_next_event",
            sa.Boolean(),
            nullable=True,
            comment="Hidden at Checkly until it happens again.",
        ),
        sa.Column(
            "fetched_at",
            TIME,
            nullable=True,
            comment="When its document was read or found gone; null: known by id only.",
        ),
        sa.PrimaryKeyConstraint("error_group_id", name=op.f("pk_error_groups")),
        comment="One row an error group: failures that share a cleaned message.",
    )
    op.create_index(
        "ix_error_groups_to_fetch",
        "error_groups",
        ["error_group_id"],
        unique=False,
        postgresql_where=sa.text("fetched_at IS NULL"),
        sqlite_where=sa.text("fetched_at IS NULL"),
    )
    op.create_table(
        "etl_accounts",
        sa.Column("account_id", ID, autoincrement=False, nullable=False, comment="The Checkly account."),
        sa.Column("name", sa.Text(), nullable=True, comment="Its name in the settings."),
        sa.Column(
            "retention",
            sa.BigInteger(),
            nullable=True,
            comment="Seconds that Checkly keeps its results, from the settings.",
        ),
        sa.Column(
            "discovered_until",
            TIME,
            nullable=True,
            comment="Sessions created before are in the queue or in the warehouse.",
        ),
        sa.Column("last_success_at", TIME, nullable=True, comment="End of the last pass without a failure."),
        sa.Column("discovery_token", ID, nullable=True, comment="Token of the process that discovers now."),
        sa.Column("discovery_process", sa.Text(), nullable=True, comment="Host and process of that token."),
        sa.Column("discovery_leased_until", TIME, nullable=True, comment="End of its lease."),
        sa.Column("paused_until", TIME, nullable=True, comment="The API asked for silence until then."),
        sa.Column(
            "pauses",
            sa.Integer(),
            nullable=False,
            comment="429s without Retry-After since the last answer: doubles the next pause.",
        ),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_etl_accounts")),
        comment="One row an account: how far discovery came, its lease, rate budget and pause.",
    )
    op.create_table(
        "etl_drift",
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False, comment="Kind of document."),
        sa.Column("json_path", sa.Text(), autoincrement=False, nullable=False, comment="Where in the document."),
        sa.Column("first_seen_at", TIME, nullable=False, comment="When it was first seen."),
        sa.Column("last_seen_at", TIME, nullable=False, comment="When it was last seen."),
        sa.Column("occurrences", sa.BigInteger(), nullable=False, comment="How often."),
        sa.Column("example", sa.Text(), nullable=True, comment="One value, cut to 200 characters."),
        sa.PrimaryKeyConstraint("kind", "json_path", name=op.f("pk_etl_drift")),
        comment="Fields and values of the API that the typed columns do not know yet.",
    )
    op.create_table(
        "etl_payloads",
        sa.Column(
            "kind",
            sa.Text(),
            autoincrement=False,
            nullable=False,
            comment="test_session, test_session_summary, test_session_result or error_group.",
        ),
        sa.Column(
            "document_id", ID, autoincrement=False, nullable=False, comment="Id of the document within its kind."
        ),
        sa.Column("account_id", ID, nullable=True, comment="Account that it was fetched with."),
        sa.Column(
            "test_session_id", ID, nullable=True, comment="The session that it belongs to; null for an error group."
        ),
        sa.Column("body", sa.Text(), nullable=False, comment="The document as received."),
        sa.Column("sha256", sa.String(length=64), nullable=False, comment="Hash of the document as received."),
        sa.Column("fetched_at", TIME, nullable=False, comment="When it was received."),
        sa.PrimaryKeyConstraint("kind", "document_id", name=op.f("pk_etl_payloads")),
        comment="The latest document of each kind and id, as received: replay rebuilds every row from them.",
    )
    op.create_index("ix_etl_payloads_test_session_id", "etl_payloads", ["test_session_id"], unique=False)
    op.create_table(
        "etl_queue",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="The test session to fetch; no row: nothing to do.",
        ),
        sa.Column("account_id", ID, nullable=True, comment="Account to fetch it with; null until assigned."),
        sa.Column("state", sa.Text(), nullable=False, comment="queued, leased, dead or discarded."),
        sa.Column("priority", sa.SmallInteger(), nullable=False, comment="Higher first."),
        sa.Column(
            "claim_order",
            sa.Double(),
            nullable=False,
            comment="Greater first within a priority: seconds of the creation time, negative for the oldest first.",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="discovery, backfill, enqueue, inbox or settle."),
        sa.Column(
            "attempts",
            sa.Integer(),
            nullable=False,
            comment="Failures that a worker reported since the last success.",
        ),
        sa.Column(
            "available_at",
            TIME,
            nullable=False,
            comment="Not before this time; for a leased row the end of the lease.",
        ),
        sa.Column(
            "claim_token", ID, nullable=True, comment="Token of the claim that may ack it; null unless leased."
        ),
        sa.Column(
            "claimed_by",
            sa.Text(),
            nullable=True,
            comment="Host and process of the claim, to see at once when it died; null unless leased.",
        ),
        sa.Column("enqueued_at", TIME, nullable=False, comment="Since when it has been waiting."),
        sa.Column(
            "session_created_at", TIME, nullable=True, comment="Checkly's creation time; null when known by id only."
        ),
        sa.Column(
            "summary",
            sa.Text(),
            nullable=True,
            comment="The list entry as received, until it is saved with its detail.",
        ),
        sa.Column("summary_sha256", sa.String(length=64), nullable=True, comment="Hash of the list entry."),
        sa.Column(
            "error_kind", sa.Text(), nullable=True, comment="What kept it from being exported last time, one word."
        ),
        sa.Column("last_error", sa.Text(), nullable=True, comment="The same in a sentence."),
        sa.Column("last_error_at", TIME, nullable=True, comment="When that was."),
        sa.PrimaryKeyConstraint("test_session_id", name=op.f("pk_etl_queue")),
        comment="Work to do: one row a test session that is to be fetched, or that could not be.",
    )
    op.create_index(
        "ix_etl_queue_claim",
        "etl_queue",
        ["priority", "claim_order", "test_session_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'leased')"),
        sqlite_where=sa.text("state IN ('queued', 'leased')"),
    )
    op.create_table(
        "etl_rate_grants",
        sa.Column("account_id", ID, autoincrement=False, nullable=False, comment="The Checkly account."),
        sa.Column(
            "granted_at",
            TIME,
            autoincrement=False,
            nullable=False,
            comment="When they were granted, by the database's clock.",
        ),
        sa.Column("calls", sa.Integer(), nullable=False, comment="Calls granted at that time."),
        sa.PrimaryKeyConstraint("account_id", "granted_at", name=op.f("pk_etl_rate_grants")),
        comment="The sliding window of the rate budget: calls granted in the last 61 seconds.",
    )
    op.create_table(
        "etl_runs",
        sa.Column("etl_run_id", ID, autoincrement=False, nullable=False, comment="The run."),
        sa.Column("command", sa.Text(), nullable=False, comment="sync, backfill or replay."),
        sa.Column("process", sa.Text(), nullable=False, comment="Host and process that ran it."),
        sa.Column("started_at", TIME, nullable=False, comment="When it started."),
        sa.Column(
            "heartbeat_at",
            TIME,
            nullable=False,
            comment="When it last wrote; an old one without an outcome was killed.",
        ),
        sa.Column("finished_at", TIME, nullable=True, comment="When it ended; null while it runs."),
        sa.Column(
            "outcome", sa.Text(), nullable=True, comment="ok, partial, failed or interrupted; null while it runs."
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="What went wrong."),
        sa.Column("test_sessions_saved", sa.Integer(), nullable=False, comment="Test sessions written."),
        sa.Column(
            "test_sessions_unchanged",
            sa.Integer(),
            nullable=False,
            comment="Test sessions fetched and found unchanged.",
        ),
        sa.Column(
            "test_sessions_dead", sa.Integer(), nullable=False, comment="Test sessions that became dead letters."
        ),
        sa.Column("results_saved", sa.Integer(), nullable=False, comment="Result rows written."),
        sa.Column("api_requests", sa.Integer(), nullable=False, comment="HTTP requests sent."),
        sa.Column("api_retries", sa.Integer(), nullable=False, comment="HTTP requests that repeated a failed one."),
        sa.Column(
            "throttled_ms",
            sa.BigInteger(),
            nullable=False,
            comment="Milliseconds spent waiting for the rate budget or a pause.",
        ),
        sa.PrimaryKeyConstraint("etl_run_id", name=op.f("pk_etl_runs")),
        comment="One row a run of sync, backfill or replay.",
    )
    op.create_index("ix_etl_runs_started_at", "etl_runs", ["started_at"], unique=False)
    op.create_table(
        "etl_views",
        sa.Column("view_name", sa.Text(), autoincrement=False, nullable=False, comment="The view."),
        sa.Column(
            "sha256", sa.String(length=64), nullable=False, comment="Hash of the text that it was created from."
        ),
        sa.PrimaryKeyConstraint("view_name", name=op.f("pk_etl_views")),
        comment="Texts of the views, by hash: tells whether the schema is current without alembic.",
    )
    op.create_table(
        "test_sessions",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column(
            "account_id",
            ID,
            nullable=True,
            comment="Account that it was fetched with, until a list entry says otherwise.",
        ),
        sa.Column("project_id", ID, nullable=True, comment="Checkly project; only the list knows it."),
        sa.Column("name", sa.Text(), nullable=True, comment="Name given by the CLI, the reporter or the trigger."),
        sa.Column(
            "status",
            sa.Text(),
            nullable=False,
            comment="Checkly's status, verbatim: RUNNING, PASSED, FAILED, CANCELLED or newer ones.",
        ),
        sa.Column(
            "is_final",
            sa.Boolean(),
            nullable=False,
            comment="PASSED, FAILED, CANCELLED, or any other status with a stopped_at.",
        ),
        sa.Column(
            "provider",
            sa.Text(),
            nullable=True,
            comment="What started it: GITHUB, VERCEL, API, TRIGGER, PW_REPORTER …; list only.",
        ),
        sa.Column("region", sa.Text(), nullable=True, comment="Region that it was started for; list only."),
        sa.Column(
            "private_location_id", ID, nullable=True, comment="Private location that it was started for; list only."
        ),
        sa.Column("invoker_name", sa.Text(), nullable=True, comment="Person or token that started it; list only."),
        sa.Column("environment", sa.Text(), nullable=True, comment="Environment as the run named it."),
        sa.Column("repo_url", sa.Text(), nullable=True, comment="Repository of the tested code."),
        sa.Column("branch_name", sa.Text(), nullable=True, comment="Git branch."),
        sa.Column("commit_id", sa.Text(), nullable=True, comment="Git commit."),
        sa.Column("commit_owner", sa.Text(), nullable=True, comment="Author of the commit."),
        sa.Column("commit_message", sa.Text(), nullable=True, comment="Message of the commit."),
        sa.Column(
            "github_reporting", sa.Boolean(), nullable=True, comment="Whether results are reported back to GitHub."
        ),
        sa.Column("github_repository", sa.Text(), nullable=True, comment="owner/name on GitHub."),
        sa.Column("github_sha", sa.Text(), nullable=True, comment="Commit that GitHub ran on."),
        sa.Column("github_run_id", sa.Text(), nullable=True, comment="GitHub Actions run id."),
        sa.Column("github_run_attempt", sa.Text(), nullable=True, comment="GitHub Actions run attempt."),
        sa.Column("github_workflow", sa.Text(), nullable=True, comment="GitHub Actions workflow."),
        sa.Column("github_job", sa.Text(), nullable=True, comment="GitHub Actions job."),
        sa.Column("github_event_name", sa.Text(), nullable=True, comment="GitHub event: push, pull_request …"),
        sa.Column("github_ref", sa.Text(), nullable=True, comment="Git ref that triggered the workflow."),
        sa.Column("github_head_ref", sa.Text(), nullable=True, comment="Source branch of the pull request."),
        sa.Column("github_base_ref", sa.Text(), nullable=True, comment="Target branch of the pull request."),
        sa.Column("github_server_url", sa.Text(), nullable=True, comment="GitHub server."),
        sa.Column("started_at", TIME, nullable=False, comment="When the test session started."),
        sa.Column("stopped_at", TIME, nullable=True, comment="When it ended; null while it runs."),
        sa.Column(
            "time_elapsed_ms",
            sa.Double(),
            nullable=True,
            comment="Checkly's own measure of its duration, milliseconds.",
        ),
        sa.Column("link", sa.Text(), nullable=True, comment="Page of the test session at Checkly."),
        sa.Column("created_at", TIME, nullable=True, comment="Checkly's creation time; null when known by id only."),
        sa.Column(
            "updated_at",
            TIME,
            nullable=True,
            comment="Checkly's time of the last change; null when known by id only.",
        ),
        sa.Column("first_exported_at", TIME, nullable=False, comment="When it first reached this warehouse."),
        sa.Column(
            "exported_at",
            TIME,
            nullable=False,
            comment="When any row of it was last written: reload downstream models by it.",
        ),
        sa.Column("etl_run_id", ID, nullable=True, comment="Run that last wrote it (etl_runs)."),
        sa.Column(
            "payload_sha256", sa.String(length=64), nullable=False, comment="Hash of the detail document as received."
        ),
        sa.Column(
            "summary_sha256",
            sa.String(length=64),
            nullable=True,
            comment="Hash of the list entry as received; null when known by id only.",
        ),
        sa.PrimaryKeyConstraint("test_session_id", name=op.f("pk_test_sessions")),
        comment="One row a test session: one run of many checks, from the list entry and the detail document.",
    )
    op.create_index("ix_test_sessions_exported_at", "test_sessions", ["exported_at"], unique=False)
    op.create_index(
        "ix_test_sessions_not_final",
        "test_sessions",
        ["started_at"],
        unique=False,
        postgresql_where=sa.text("NOT is_final"),
        sqlite_where=sa.text("NOT is_final"),
    )
    op.create_index("ix_test_sessions_started_at", "test_sessions", ["started_at"], unique=False)
    op.create_table(
        "check_executions",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column(
            "execution_no",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="From 1 in order of first appearance; no stable id outside of this session.",
        ),
        sa.Column(
            "check_key",
            sa.Text(),
            nullable=False,
            comment="check_id, else <project_id or ->:<check_type>:<check_name or empty>.",
        ),
        sa.Column(
            "history_key",
            sa.String(length=64),
            nullable=False,
            comment="Hash of account, check_key, branch, environment and run location.",
        ),
        sa.Column(
            "grouped_by",
            sa.Text(),
            nullable=False,
            comment="sequence (Checkly's own grouping) or inferred (from the order of results).",
        ),
        sa.Column("test_session_result_id", ID, nullable=False, comment="The FINAL result, else the last one."),
        sa.Column("link", sa.Text(), nullable=True, comment="Page of that result at Checkly."),
        sa.Column("check_id", ID, nullable=True, comment="Checkly's id of the check."),
        sa.Column("check_name", sa.Text(), nullable=True, comment="Name of the check at the time of the run."),
        sa.Column("check_type", sa.Text(), nullable=True, comment="Checkly's check type, verbatim."),
        sa.Column("run_location", sa.Text(), nullable=True, comment="Region or private location that it ran in."),
        sa.Column("status", sa.Text(), nullable=False, comment="Checkly's status of that result, verbatim."),
        sa.Column(
            "verdict",
            sa.Text(),
            nullable=True,
            comment="PASSED or FAILED when a FINAL has that status; null: undecided.",
        ),
        sa.Column("retries", sa.Integer(), nullable=False, comment="ATTEMPT rows folded into it."),
        sa.Column("is_retry_flaky", sa.Boolean(), nullable=False, comment="A failed ATTEMPT, then verdict PASSED."),
        sa.Column("is_degraded", sa.Boolean(), nullable=True, comment="Slower than its limit for degraded."),
        sa.Column("has_errors", sa.Boolean(), nullable=True, comment="The run could not be carried out properly."),
        sa.Column("started_at", TIME, nullable=False, comment="Earliest start of its rows, else the session's."),
        sa.Column("stopped_at", TIME, nullable=True, comment="End of the FINAL; null without one."),
        sa.Column(
            "duration_ms",
            sa.Double(),
            nullable=True,
            comment="stopped_at - started_at of the FINAL, milliseconds; null without one.",
        ),
        sa.Column(
            "retry_cost_ms", sa.Double(), nullable=False, comment="Time that its ATTEMPT rows took, milliseconds."
        ),
        sa.Column("account_id", ID, nullable=True, comment="Copied from the session."),
        sa.Column("project_id", ID, nullable=True, comment="Copied from the session."),
        sa.Column("environment", sa.Text(), nullable=True, comment="Copied from the session."),
        sa.Column("branch_name", sa.Text(), nullable=True, comment="Copied from the session."),
        sa.Column("commit_id", sa.Text(), nullable=True, comment="Copied from the session."),
        sa.ForeignKeyConstraint(
            ["test_session_id"],
            ["test_sessions.test_session_id"],
            name=op.f("fk_check_executions_test_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("test_session_id", "execution_no", name=op.f("pk_check_executions")),
        comment="One row an execution of a check, its attempts folded; rebuilt from the session's latest payload.",
    )
    op.create_index(
        "ix_check_executions_check_id_started_at", "check_executions", ["check_id", "started_at"], unique=False
    )
    op.create_index(
        "ix_check_executions_history_key_started_at", "check_executions", ["history_key", "started_at"], unique=False
    )
    op.create_index("ix_check_executions_started_at", "check_executions", ["started_at"], unique=False)
    op.create_table(
        "error_group_environments",
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="The error group."),
        sa.Column(
            "environment",
            sa.Text(),
            autoincrement=False,
            nullable=False,
            comment="Environment that it was observed in.",
        ),
        sa.ForeignKeyConstraint(
            ["error_group_id"],
            ["error_groups.error_group_id"],
            name=op.f("fk_error_group_environments_error_group_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("error_group_id", "environment", name=op.f("pk_error_group_environments")),
        comment="Environments that an error group was observed in.",
    )
    op.create_table(
        "error_group_playwright_tests",
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="The error group."),
        sa.Column(
            "position", sa.Integer(), autoincrement=False, nullable=False, comment="Place in the document, from 1."
        ),
        sa.Column("project_name", sa.Text(), nullable=True, comment="Playwright project."),
        sa.Column("spec_id", sa.Text(), nullable=True, comment="Playwright's id of the spec."),
        sa.Column("test_file", sa.Text(), nullable=True, comment="File of the test."),
        sa.Column("test_title", sa.Text(), nullable=True, comment="Title of the test."),
        sa.Column("suite_path", JSON, nullable=True, comment="Titles of the enclosing suites, an array."),
        sa.ForeignKeyConstraint(
            ["error_group_id"],
            ["error_groups.error_group_id"],
            name=op.f("fk_error_group_playwright_tests_error_group_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("error_group_id", "position", name=op.f("pk_error_group_playwright_tests")),
        comment="Playwright tests that an error group occurred in.",
    )
    op.create_table(
        "error_group_root_cause_analyses",
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="The error group."),
        sa.Column(
            "position", sa.Integer(), autoincrement=False, nullable=False, comment="Place in the document, from 1."
        ),
        sa.Column("root_cause_analysis_id", ID, nullable=True, comment="Checkly's id of the analysis."),
        sa.Column("created_at", TIME, nullable=True, comment="When it was made."),
        sa.Column("provider", sa.Text(), nullable=True, comment="Provider of the language model."),
        sa.Column("model", sa.Text(), nullable=True, comment="Language model."),
        sa.Column("duration_ms", sa.Double(), nullable=True, comment="Time that it took, milliseconds."),
        sa.Column("classification", sa.Text(), nullable=True, comment="From the analysis."),
        sa.Column("user_impact", sa.Text(), nullable=True, comment="From the analysis."),
        sa.Column("root_cause", sa.Text(), nullable=True, comment="From the analysis."),
        sa.Column("code_fix", sa.Text(), nullable=True, comment="From the analysis."),
        sa.Column("analysis", JSON, nullable=True, comment="The whole analysis."),
        sa.ForeignKeyConstraint(
            ["error_group_id"],
            ["error_groups.error_group_id"],
            name=op.f("fk_error_group_root_cause_analyses_error_group_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("error_group_id", "position", name=op.f("pk_error_group_root_cause_analyses")),
        comment="Root cause analyses that Checkly made of an error group.",
    )
    op.create_table(
        "test_session_error_groups",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="Error group observed in it."),
        sa.ForeignKeyConstraint(
            ["error_group_id"],
            ["error_groups.error_group_id"],
            name=op.f("fk_test_session_error_groups_error_group_id"),
        ),
        sa.ForeignKeyConstraint(
            ["test_session_id"],
            ["test_sessions.test_session_id"],
            name=op.f("fk_test_session_error_groups_test_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("test_session_id", "error_group_id", name=op.f("pk_test_session_error_groups")),
        comment="Error groups observed in a test session.",
    )
    op.create_index(
        "ix_test_session_error_groups_error_group_id", "test_session_error_groups", ["error_group_id"], unique=False
    )
    op.create_table(
        "test_session_result_error_groups",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column("test_session_result_id", ID, autoincrement=False, nullable=False, comment="The result."),
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="Error group observed in it."),
        sa.ForeignKeyConstraint(
            ["error_group_id"],
            ["error_groups.error_group_id"],
            name=op.f("fk_test_session_result_error_groups_error_group_id"),
        ),
        sa.ForeignKeyConstraint(
            ["test_session_id"],
            ["test_sessions.test_session_id"],
            name=op.f("fk_test_session_result_error_groups_test_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "test_session_id",
            "test_session_result_id",
            "error_group_id",
            name=op.f("pk_test_session_result_error_groups"),
        ),
        comment="Error groups observed in a result.",
    )
    op.create_index(
        "ix_test_session_result_error_groups_error_group_id",
        "test_session_result_error_groups",
        ["error_group_id"],
        unique=False,
    )
    op.create_table(
        "test_session_results",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column(
            "test_session_result_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the result, lower case.",
        ),
        sa.Column("position", sa.Integer(), nullable=False, comment="Place in the payload, from 1."),
        sa.Column(
            "execution_no",
            sa.Integer(),
            nullable=True,
            comment="The execution (check_executions); null for a row that only an earlier RUNNING payload held.",
        ),
        sa.Column(
            "check_id",
            ID,
            nullable=True,
            comment="Checkly's id of the check; null for checks that exist in the run only.",
        ),
        sa.Column("check_type", sa.Text(), nullable=True, comment="Checkly's check type, verbatim."),
        sa.Column("check_name", sa.Text(), nullable=True, comment="Name of the check at the time of the run."),
        sa.Column("run_location", sa.Text(), nullable=True, comment="Region or private location that it ran in."),
        sa.Column(
            "result_type",
            sa.Text(),
            nullable=True,
            comment="FINAL, ATTEMPT (an earlier failed try) or PENDING (not run yet).",
        ),
        sa.Column("status", sa.Text(), nullable=False, comment="Checkly's status, verbatim."),
        sa.Column("has_errors", sa.Boolean(), nullable=True, comment="The run could not be carried out properly."),
        sa.Column("has_failures", sa.Boolean(), nullable=True, comment="An assertion failed."),
        sa.Column("is_degraded", sa.Boolean(), nullable=True, comment="Slower than its limit for degraded."),
        sa.Column("is_aborted", sa.Boolean(), nullable=True, comment="Stopped before its end."),
        sa.Column(
            "response_time_ms",
            sa.Double(),
            nullable=True,
            comment="Checkly's responseTime, milliseconds; means another thing per check type.",
        ),
        sa.Column("started_at", TIME, nullable=True, comment="When the run of the check started."),
        sa.Column("stopped_at", TIME, nullable=True, comment="When it ended."),
        sa.Column("link", sa.Text(), nullable=True, comment="Page of the result at Checkly."),
        sa.Column(
            "details_fetched_at",
            TIME,
            nullable=True,
            comment="When the result's own document was read; null if it was not.",
        ),
        sa.Column(
            "sequence_id",
            ID,
            nullable=True,
            comment="One per execution, shared by its attempts; from the result's document.",
        ),
        sa.Column("attempts", sa.Integer(), nullable=True, comment="Attempts so far; from the result's document."),
        sa.Column(
            "file_path", sa.Text(), nullable=True, comment="File that defines the check; from the result's document."
        ),
        sa.Column("private_location_id", ID, nullable=True, comment="Private location; from the result's document."),
        sa.Column(
            "over_max_response_time",
            sa.Boolean(),
            nullable=True,
            comment="Slower than its limit; from the result's document.",
        ),
        sa.Column("is_cancelled", sa.Boolean(), nullable=True, comment="Cancelled; from the result's document."),
        sa.Column(
            "schedule_error",
            sa.Text(),
            nullable=True,
            comment="Why it could not be scheduled; from the result's document.",
        ),
        sa.Column("trace_id", sa.Text(), nullable=True, comment="Trace id; from the result's document."),
        sa.ForeignKeyConstraint(
            ["test_session_id"],
            ["test_sessions.test_session_id"],
            name=op.f("fk_test_session_results_test_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("test_session_id", "test_session_result_id", name=op.f("pk_test_session_results")),
        comment="One row a result as Checkly reports it: attempts are rows of their own.",
    )


def downgrade() -> None:
    op.drop_table("test_session_results")
    op.drop_index("ix_test_session_result_error_groups_error_group_id", table_name="test_session_result_error_groups")
    op.drop_table("test_session_result_error_groups")
    op.drop_index("ix_test_session_error_groups_error_group_id", table_name="test_session_error_groups")
    op.drop_table("test_session_error_groups")
    op.drop_table("error_group_root_cause_analyses")
    op.drop_table("error_group_playwright_tests")
    op.drop_table("error_group_environments")
    op.drop_index("ix_check_executions_started_at", table_name="check_executions")
    op.drop_index("ix_check_executions_history_key_started_at", table_name="check_executions")
    op.drop_index("ix_check_executions_check_id_started_at", table_name="check_executions")
    op.drop_table("check_executions")
    op.drop_index("ix_test_sessions_started_at", table_name="test_sessions")
    op.drop_index("ix_test_sessions_not_final", table_name="test_sessions")
    op.drop_index("ix_test_sessions_exported_at", table_name="test_sessions")
    op.drop_table("test_sessions")
    op.drop_table("etl_views")
    op.drop_index("ix_etl_runs_started_at", table_name="etl_runs")
    op.drop_table("etl_runs")
    op.drop_table("etl_rate_grants")
    op.drop_index("ix_etl_queue_claim", table_name="etl_queue")
    op.drop_table("etl_queue")
    op.drop_index("ix_etl_payloads_test_session_id", table_name="etl_payloads")
    op.drop_table("etl_payloads")
    op.drop_table("etl_drift")
    op.drop_table("etl_accounts")
    op.drop_index("ix_error_groups_to_fetch", table_name="error_groups")
    op.drop_table("error_groups")

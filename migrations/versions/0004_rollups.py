"""Rollups: what views read instead of counting ten million executions again, and indexes for what they still count.

Revision: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# As etl/tables.py meant them at this revision; repeated here, because that file moves on.
ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
HASH = sa.Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.DateTime(timezone=True)
DAY = sa.Date().with_variant(sa.String(10), "sqlite")

# Letter by letter as the views write them: only so do they find the index. Neither SQLAlchemy nor alembic knows an
# index that is over another expression on each dialect.
CHECK_HASH = {
    "postgresql": "CAST(md5(COALESCE(CAST(account_id AS text), '-') || ' ' || check_key) AS uuid)",
    "sqlite": "CAST(COALESCE(account_id, '-') || ' ' || check_key AS text)",
}
UTC_DAY = {
    "postgresql": "CAST(started_at AT TIME ZONE 'UTC' AS date)",
    "sqlite": "CAST(substr(started_at, 1, 10) AS text)",
}


def upgrade() -> None:
    op.create_table(
        "etl_checks",
        sa.Column("check_hash", HASH, autoincrement=False, nullable=False, comment="Hash of account and check_key."),
        sa.Column("account_id", ID, nullable=True, comment="The account."),
        sa.Column("check_key", sa.Text(), nullable=False, comment="As in check_executions."),
        sa.Column(
            "rolled_up_for",
            DAY,
            nullable=True,
            comment="UTC day for which its rollups are right; null: touched since.",
        ),
        sa.Column(
            "has_streaks",
            sa.Boolean(),
            nullable=True,
            comment="Whether etl_rollup_failure_streaks holds all of its history; null: touched since.",
        ),
        sa.Column(
            "check_id",
            ID,
            nullable=True,
            comment="Checkly's id of the check; this and the rest are right while rolled_up_for is.",
        ),
        sa.Column("check_name", sa.Text(), nullable=True, comment="Name of the check in its newest execution."),
        sa.Column("check_type", sa.Text(), nullable=True, comment="Type of the check in its newest execution."),
        sa.Column("project_id", ID, nullable=True, comment="Project of the newest execution that has one."),
        sa.Column("first_started_at", TIME, nullable=True, comment="Start of its first execution."),
        sa.Column("last_started_at", TIME, nullable=True, comment="Start of its newest execution."),
        sa.Column("last_verdict", sa.Text(), nullable=True, comment="Verdict of its newest decided execution."),
        sa.PrimaryKeyConstraint("check_hash", name=op.f("pk_etl_checks")),
        comment="One row a check that ever ran; short keys for joins.",
    )
    op.create_table(
        "etl_days",
        sa.Column(
            "day", DAY, autoincrement=False, nullable=False, comment="A UTC day on which an execution started."
        ),
        sa.Column(
            "is_rolled_up",
            sa.Boolean(),
            nullable=True,
            comment="Whether etl_rollup_check_daily holds all of it; null: too old for that.",
        ),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_etl_days")),
        comment="One row a UTC day with executions.",
    )
    op.create_table(
        "etl_rollup_check_daily",
        sa.Column("day", DAY, nullable=False, comment="As in v_check_daily, like the rest."),
        sa.Column("check_hash", HASH, nullable=False, comment="The check."),
        sa.Column("account_id", ID, nullable=True, comment="See v_check_daily."),
        sa.Column("check_key", sa.Text(), nullable=False, comment="See v_check_daily."),
        sa.Column("branch_name", sa.Text(), nullable=True, comment="See v_check_daily."),
        sa.Column("environment", sa.Text(), nullable=True, comment="See v_check_daily."),
        sa.Column("run_location", sa.Text(), nullable=True, comment="See v_check_daily."),
        sa.Column("executions", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("decided", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("passed", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("failed", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("errored", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("retry_flaky", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("degraded", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("retry_cost_ms", sa.Double(), nullable=False, comment="See v_check_daily."),
        sa.Column("passed_duration_ms_sum", sa.Double(), nullable=False, comment="See v_check_daily."),
        sa.Column("passed_duration_n", sa.BigInteger(), nullable=False, comment="See v_check_daily."),
        sa.Column("p50_duration_ms", sa.Double(), nullable=True, comment="See v_check_daily."),
        sa.Column("p95_duration_ms", sa.Double(), nullable=True, comment="See v_check_daily."),
        comment="Rows of v_check_daily for the days that etl_days says.",
    )
    op.create_index("ix_etl_rollup_check_daily_check_hash", "etl_rollup_check_daily", ["check_hash"])
    op.create_index("ix_etl_rollup_check_daily_day", "etl_rollup_check_daily", ["day"])

    op.create_table(
        "etl_rollup_duration_regressions",
        sa.Column("check_hash", HASH, nullable=False, comment="The check."),
        sa.Column("environment", sa.Text(), nullable=True, comment="See v_duration_regressions."),
        sa.Column("run_location", sa.Text(), nullable=True, comment="See v_duration_regressions."),
        sa.Column("recent_p95_duration_ms", sa.Double(), nullable=True, comment="See v_duration_regressions."),
        sa.Column("baseline_p95_duration_ms", sa.Double(), nullable=True, comment="See v_duration_regressions."),
        sa.Column("recent_n", sa.BigInteger(), nullable=False, comment="See v_duration_regressions."),
        sa.Column("baseline_n", sa.BigInteger(), nullable=False, comment="See v_duration_regressions."),
        sa.Column("baseline_days", sa.BigInteger(), nullable=False, comment="See v_duration_regressions."),
        comment="Rows of v_duration_regressions for the checks and the day that etl_checks says.",
    )
    op.create_index(
        "ix_etl_rollup_duration_regressions_check_hash", "etl_rollup_duration_regressions", ["check_hash"]
    )

    op.create_table(
        "etl_rollup_error_group_impact",
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="The error group."),
        sa.Column("rolled_up_for", DAY, nullable=False, comment="The UTC day for which the row is right."),
        sa.Column("occurrences", sa.BigInteger(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("test_sessions", sa.BigInteger(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("checks", sa.BigInteger(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("branches", sa.BigInteger(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("environments", sa.BigInteger(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("first_observed_at", TIME, nullable=True, comment="See v_error_group_impact."),
        sa.Column("last_observed_at", TIME, nullable=True, comment="See v_error_group_impact."),
        sa.Column("occurrences_7d", sa.BigInteger(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("is_new", sa.Boolean(), nullable=False, comment="See v_error_group_impact."),
        sa.Column("is_regression", sa.Boolean(), nullable=False, comment="See v_error_group_impact."),
        sa.PrimaryKeyConstraint("error_group_id", name=op.f("pk_etl_rollup_error_group_impact")),
        comment="Rows of v_error_group_impact.",
    )
    op.create_table(
        "etl_rollup_flaky_checks",
        sa.Column("check_hash", HASH, autoincrement=False, nullable=False, comment="The check."),
        sa.Column("executions", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.Column("decided", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.Column("retry_flaky", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.Column("commits", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.Column("commit_flaky", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.Column("comparable", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.Column("flips", sa.BigInteger(), nullable=False, comment="See v_flaky_checks."),
        sa.PrimaryKeyConstraint("check_hash", name=op.f("pk_etl_rollup_flaky_checks")),
        comment="Rows of v_flaky_checks for the checks and the day that etl_checks says.",
    )
    op.create_table(
        "etl_rollup_test_session_summary",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column("executions", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("passed", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("failed", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("undecided", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("retry_flaky", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("degraded", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("retries", sa.BigInteger(), nullable=False, comment="See v_test_session_summary."),
        sa.Column("retry_cost_ms", sa.Double(), nullable=False, comment="See v_test_session_summary."),
        sa.PrimaryKeyConstraint("test_session_id", name=op.f("pk_etl_rollup_test_session_summary")),
        comment="What the executions of a test session came to. A row: its error occurrences are right, too.",
    )
    op.create_table(
        "etl_rollup_failure_streaks",
        sa.Column("check_hash", HASH, nullable=False, comment="The check."),
        sa.Column("branch_name", sa.Text(), nullable=True, comment="See v_failure_streaks."),
        sa.Column("environment", sa.Text(), nullable=True, comment="See v_failure_streaks."),
        sa.Column("run_location", sa.Text(), nullable=True, comment="See v_failure_streaks."),
        sa.Column("first_failed_at", TIME, nullable=False, comment="See v_failure_streaks."),
        sa.Column("last_failed_at", TIME, nullable=False, comment="See v_failure_streaks."),
        sa.Column("recovered_at", TIME, nullable=True, comment="See v_failure_streaks."),
        sa.Column("failures", sa.BigInteger(), nullable=False, comment="See v_failure_streaks."),
        sa.Column("time_to_fix_ms", sa.BigInteger(), nullable=True, comment="See v_failure_streaks."),
        sa.Column("first_failed_test_session_id", ID, nullable=False, comment="See v_failure_streaks."),
        sa.Column("first_failed_commit_id", sa.Text(), nullable=True, comment="See v_failure_streaks."),
        sa.Column("recovered_test_session_id", ID, nullable=True, comment="See v_failure_streaks."),
        sa.Column("recovered_commit_id", sa.Text(), nullable=True, comment="See v_failure_streaks."),
        sa.Column("link", sa.Text(), nullable=True, comment="See v_failure_streaks."),
        comment="Rows of v_failure_streaks for the checks that etl_checks says.",
    )
    op.create_index("ix_etl_rollup_failure_streaks_check_hash", "etl_rollup_failure_streaks", ["check_hash"])
    op.create_table(
        "etl_rollup_error_occurrences",
        sa.Column(
            "test_session_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Checkly's id of the test session, lower case.",
        ),
        sa.Column("test_session_result_id", ID, autoincrement=False, nullable=False, comment="The result."),
        sa.Column("error_group_id", ID, autoincrement=False, nullable=False, comment="Error group observed in it."),
        sa.Column("check_hash", HASH, nullable=True, comment="The check; null for a result that is in no execution."),
        sa.PrimaryKeyConstraint(
            "test_session_id",
            "test_session_result_id",
            "error_group_id",
            name=op.f("pk_etl_rollup_error_occurrences"),
        ),
        comment="Which check each link of test_session_result_error_groups is of, for v_error_occurrences.",
    )
    op.create_index("ix_etl_rollup_error_occurrences_check_hash", "etl_rollup_error_occurrences", ["check_hash"])
    op.create_index(
        "ix_etl_rollup_error_occurrences_error_group_id", "etl_rollup_error_occurrences", ["error_group_id"]
    )
    op.create_table(
        "etl_touched_error_groups",
        sa.Column("error_group_id", ID, nullable=False, comment="The error group."),
        comment="Error groups whose rollup is no longer right; only added to, so that no writer waits for another.",
    )
    op.create_index("ix_etl_touched_error_groups_error_group_id", "etl_touched_error_groups", ["error_group_id"])
    dialect = op.get_bind().dialect.name
    op.drop_index("ix_check_executions_started_at", "check_executions")
    op.execute(f"CREATE INDEX ix_check_executions_check ON check_executions (({CHECK_HASH[dialect]}), started_at)")
    op.execute(f"CREATE INDEX ix_check_executions_day ON check_executions (({UTC_DAY[dialect]}))")
    op.create_index("ix_check_executions_started_at", "check_executions", ["started_at"], postgresql_using="brin")
    op.create_index(
        "ix_check_executions_branch_name",
        "check_executions",
        ["branch_name"],
        postgresql_using="brin",
        postgresql_ops={"branch_name": "text_bloom_ops"},
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    )
    op.execute(
        "INSERT INTO etl_checks (check_hash, account_id, check_key) "
        f"SELECT DISTINCT {CHECK_HASH[dialect]}, account_id, check_key FROM check_executions"
    )
    op.execute(
        f"INSERT INTO etl_days (day, is_rolled_up) SELECT DISTINCT {UTC_DAY[dialect]}, FALSE FROM check_executions"
    )


def downgrade() -> None:
    for name in ("branch_name", "started_at", "day", "check"):
        op.drop_index(f"ix_check_executions_{name}", "check_executions")
    op.create_index("ix_check_executions_started_at", "check_executions", ["started_at"])
    for name in (
        "etl_touched_error_groups",
        "etl_rollup_failure_streaks",
        "etl_rollup_error_occurrences",
        "etl_rollup_test_session_summary",
        "etl_rollup_error_group_impact",
        "etl_rollup_duration_regressions",
        "etl_rollup_flaky_checks",
        "etl_rollup_check_daily",
        "etl_days",
        "etl_checks",
    ):
        op.drop_table(name)

"""Fold results into executions by time, and mark twins; old executions need a replay.

Revision: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

REASON = (
    "attempts and their FINAL are put together by time and not by their order in the document, and checks without "
    "an id that share a name are told apart or marked: numbers of flaky checks change"
)
# As the views write it, so that they find the index.
CHECK_HASH = {
    "postgresql": "CAST(md5(COALESCE(CAST(account_id AS text), '-') || ' ' || check_key) AS uuid)",
    "sqlite": "CAST(COALESCE(account_id, '-') || ' ' || check_key AS text)",
}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.add_column(
        "check_executions",
        sa.Column(
            "is_ambiguous",
            sa.Boolean(),
            nullable=False,
            # Kept: only with a default is a column that may not be null added without a rewrite of the table.
            server_default=sa.false(),
            comment="Another check without an id has this name here, and no file path tells them apart: which one it "
            "is is not known.",
        ),
    )
    # Few executions are ambiguous, and v_checks counts them for each check.
    op.execute(
        f"CREATE INDEX ix_check_executions_ambiguous ON check_executions (({CHECK_HASH[dialect]})) WHERE is_ambiguous"
    )
    op.add_column(
        "etl_checks", sa.Column("ambiguous", sa.BigInteger(), nullable=True, comment="Its ambiguous executions.")
    )
    # `migrate` drops what is rolled up, so the rows that this default fills are never read.
    op.add_column(
        "etl_rollup_flaky_checks",
        sa.Column("ambiguous", sa.BigInteger(), nullable=False, server_default="0", comment="See v_flaky_checks."),
    )
    op.create_table(
        "etl_replay_due",
        sa.Column(
            "revision",
            sa.String(32),
            autoincrement=False,
            nullable=False,
            comment="The revision of the schema since which documents are read otherwise.",
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="What a replay changes."),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_etl_replay_due")),
        comment="One row per reason why checkly-etl replay is due; a replay that came to its end deletes them.",
    )
    _comment(
        execution_no="From 1 by the least position of its rows; no stable id outside of this session.",
        check_key="check_id, else <project_id or ->:<check_type>:<check_name or empty>, and :<file_path> for a twin.",
        grouped_by="sequence (Checkly's own grouping) or inferred (from times and locations).",
        verdict="PASSED (FINAL PASSED or DEGRADED), FAILED (FINAL FAILED or TIMED_OUT); null: undecided.",
    )
    due = sa.text(
        "INSERT INTO etl_replay_due (revision, reason) "
        "SELECT CAST(:revision AS varchar(32)), CAST(:reason AS text) WHERE EXISTS (SELECT 1 FROM check_executions)"
    )
    op.execute(due.bindparams(revision=revision, reason=REASON))


def downgrade() -> None:
    _comment(
        execution_no="From 1 in order of first appearance; no stable id outside of this session.",
        check_key="check_id, else <project_id or ->:<check_type>:<check_name or empty>.",
        grouped_by="sequence (Checkly's own grouping) or inferred (from the order of results).",
        verdict="PASSED or FAILED when a FINAL has that status; null: undecided.",
    )
    op.drop_table("etl_replay_due")
    op.drop_column("etl_rollup_flaky_checks", "ambiguous")
    op.drop_column("etl_checks", "ambiguous")
    op.execute("DROP INDEX ix_check_executions_ambiguous")
    op.drop_column("check_executions", "is_ambiguous")


def _comment(**columns: str) -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite has no comments
        for name, comment in columns.items():
            op.alter_column("check_executions", name, comment=comment)

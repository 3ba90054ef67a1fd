"""Result details: which are still to be read; and error groups: which are to be read again.

Revision: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# As etl/tables.py meant them at this revision; repeated here, because that file moves on.
ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.DateTime(timezone=True)

BODY = "The document as received"
DIGEST = "Hash of the "


def upgrade() -> None:
    op.create_table(
        "etl_result_details_due",
        sa.Column(
            "test_session_id", ID, autoincrement=False, nullable=False, comment="The test session, saved already."
        ),
        sa.Column(
            "test_session_result_id",
            ID,
            autoincrement=False,
            nullable=False,
            comment="Its result whose own document is to be read; no row: nothing to do.",
        ),
        sa.Column("account_id", ID, nullable=False, comment="Account to fetch it with."),
        sa.Column("attempts", sa.Integer(), nullable=False, comment="Failures so far."),
        sa.Column(
            "available_at",
            TIME,
            nullable=False,
            comment="Not before this time; while a process reads it, the end of its lease.",
        ),
        sa.PrimaryKeyConstraint("test_session_id", "test_session_result_id", name=op.f("pk_etl_result_details_due")),
        comment="Work to do: one row a result whose details are to be read (export.result_details).",
    )
    op.create_index(
        "ix_etl_result_details_due_claim",
        "etl_result_details_due",
        ["account_id", "available_at", "test_session_id", "test_session_result_id"],
    )
    op.add_column(
        "error_groups",
        sa.Column(
            "stale_since",
            TIME,
            nullable=True,
            comment="Since when it is to be read again, as a newer session refers to it; else null.",
        ),
    )
    _index_what_is_to_fetch("fetched_at IS NULL OR stale_since IS NOT NULL")
    _comment_on_payloads(f"{BODY}; of a result without sections (logs, requests) and signed URLs.", f"{DIGEST}body.")


def downgrade() -> None:
    _comment_on_payloads(f"{BODY}.", f"{DIGEST}document as received.")
    _index_what_is_to_fetch("fetched_at IS NULL")
    op.drop_column("error_groups", "stale_since")
    op.drop_table("etl_result_details_due")


def _index_what_is_to_fetch(where: str) -> None:
    name, condition = "ix_error_groups_to_fetch", sa.text(where)
    op.drop_index(name, table_name="error_groups")
    op.create_index(name, "error_groups", ["error_group_id"], postgresql_where=condition, sqlite_where=condition)


def _comment_on_payloads(body: str, sha256: str) -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite has no comments
        op.alter_column("etl_payloads", "body", comment=body)
        op.alter_column("etl_payloads", "sha256", comment=sha256)

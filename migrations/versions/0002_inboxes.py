"""Inboxes: who reads one and how far, and the messages without an id.

Revision: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# As etl/tables.py meant them at this revision; repeated here, because that file moves on.
ID = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "etl_inboxes",
        sa.Column(
            "inbox",
            sa.Text(),
            autoincrement=False,
            nullable=False,
            comment="The source as the settings name it, without a password.",
        ),
        sa.Column(
            "position",
            sa.Text(),
            nullable=True,
            comment="How far a file was read, and how to know it again (JSON); null for a broker.",
        ),
        sa.Column("last_read_at", TIME, nullable=True, comment="When it could last be read to its end."),
        sa.Column("last_received_at", TIME, nullable=True, comment="When something last came."),
        sa.Column(
            "last_error", sa.Text(), nullable=True, comment="Why it could not be read last time; null if it could."
        ),
        sa.Column("reader_token", ID, nullable=True, comment="Token of the process that reads it now."),
        sa.Column("reader_process", sa.Text(), nullable=True, comment="Host and process of that token."),
        sa.Column("reader_leased_until", TIME, nullable=True, comment="End of its lease."),
        sa.PrimaryKeyConstraint("inbox", name=op.f("pk_etl_inboxes")),
        comment="One row an inbox: one process at a time reads it, and a file from where the last one ended.",
    )
    op.create_table(
        "etl_inbox_rejects",
        sa.Column("inbox", sa.Text(), autoincrement=False, nullable=False, comment="The inbox that it came from."),
        sa.Column(
            "sha256",
            sa.String(64),
            autoincrement=False,
            nullable=False,
            comment="Hash of the message: one that comes again is kept once.",
        ),
        sa.Column("received_at", TIME, nullable=False, comment="When it first came."),
        sa.Column("text", sa.Text(), nullable=False, comment="The message, cut to 64,000 characters."),
        sa.PrimaryKeyConstraint("inbox", "sha256", name=op.f("pk_etl_inbox_rejects")),
        comment="Messages of inboxes that hold no test session id. The newest thousand are kept.",
    )
    op.create_index("ix_etl_inbox_rejects_received_at", "etl_inbox_rejects", ["received_at"])


def downgrade() -> None:
    op.drop_table("etl_inbox_rejects")
    op.drop_table("etl_inboxes")

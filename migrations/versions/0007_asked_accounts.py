"""Remember which accounts do not have an id that named no account.

Revision: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "etl_queue",
        sa.Column(
            "asked_accounts",
            sa.Text(),
            nullable=True,
            comment="Accounts that do not have it, for an id that named no account (ids with commas between, empty: "
            "none yet).",
        ),
    )
    # Ids that wait and named no account are offered to all, as those queued from now on.
    op.execute("UPDATE etl_queue SET asked_accounts = '' WHERE account_id IS NULL")


def downgrade() -> None:
    op.drop_column("etl_queue", "asked_accounts")

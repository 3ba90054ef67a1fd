"""${message}

House rules:
- One revision a release step; explicit operations, never `metadata.create_all`: the tables move on.
- Views are dropped before and created after, so no revision mentions one.
- On PostgreSQL a lock is waited for at most 4 s: add columns as nullable, fill them in batches by `replay`.
- On SQLite alter tables in `op.batch_alter_table`.
- Every table and column carries a comment; every upgrade has a downgrade, and a test runs both.
- Set HEAD in etl/schema.py to this revision.

Revision: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}

"""Payloads are compressed by lz4, where the server has it: a third of the server's time to store one went into pglz.

Revision: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    has_lz4 = "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
    if op.get_bind().exec_driver_sql(has_lz4).scalar():
        op.execute("ALTER TABLE etl_payloads ALTER COLUMN body SET COMPRESSION lz4")  # of what is written from now on


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE etl_payloads ALTER COLUMN body SET COMPRESSION DEFAULT")

"""Which LoRAs a job draws with, so that it can go where they are already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("loras", sa.String(length=16), nullable=False, server_default=""))

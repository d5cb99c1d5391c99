"""Alembic's way to the database: over the connection that :class:`Database` hands in."""

from __future__ import annotations

from alembic import context

from lora_service.gateway.database.tables import Table

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
connection.commit()

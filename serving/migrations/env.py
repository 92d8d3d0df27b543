"""Alembic's entry: runs the versions over the connection that upgrade() hands it."""

from __future__ import annotations

from alembic import context

from assets.sql.base import Base
from serving.bootstrap import database  # noqa: F401  (registers every table)

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()

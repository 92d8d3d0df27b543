"""Alembic versions, in order of their numbers."""

"""Asynchronous jobs: stored in the database, so they survive their gateway."""

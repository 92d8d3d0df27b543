"""Asynchronous jobs, which survive their gateway."""

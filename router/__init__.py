"""Scheduling: which request to run next, and on which replica. Pure; no I/O, no clock."""

"""Scheduling: which request runs next, and on which replica. No I/O, no clock."""

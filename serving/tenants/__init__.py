"""Tenants: plans, members, API keys, rate limits, usage and audit log."""

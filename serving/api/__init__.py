"""The HTTP API: OctoAI's wire format, and native routes."""

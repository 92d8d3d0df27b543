"""Ingest: convert uploads to canonical files in a sandboxed process, or reject them."""

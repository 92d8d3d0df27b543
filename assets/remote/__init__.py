"""Imports from other sites, through an HTTP client that is guarded against SSRF."""

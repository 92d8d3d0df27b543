"""Serving: the engine, the dispatcher, the HTTP API and the command line."""

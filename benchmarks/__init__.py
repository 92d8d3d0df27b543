"""Benchmarks. No shipped package imports them; results are in benchmarks/results."""

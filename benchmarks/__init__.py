"""Benchmarks; results are in benchmarks/results."""

"""Measurements. Imports everything, imported by nobody; results lie in benchmarks/results."""

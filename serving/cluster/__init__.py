"""Ray adapters without logic; only this package imports Ray."""

"""The Ray adapters, without logic; the only package that imports Ray."""

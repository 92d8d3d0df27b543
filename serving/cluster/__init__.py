"""Ray: the only place that imports it; adapters without logic."""

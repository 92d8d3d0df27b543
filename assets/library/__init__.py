"""A tenant's library: its assets, their uploads and the resolution of names to content."""

"""The base model: its manifest and its import."""

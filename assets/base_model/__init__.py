"""The served base model: its manifest and its import."""

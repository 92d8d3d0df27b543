"""File formats: safetensors headers, names, and the canonical form."""

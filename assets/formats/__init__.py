"""File formats: safetensors headers, parameter names and the canonical form."""

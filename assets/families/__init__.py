"""Model families: configurations and parameter schemas."""

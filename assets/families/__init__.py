"""Model families: configuration, parameter schema and names."""

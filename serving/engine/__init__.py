"""SDXL: a recipe becomes weights, weights become pictures. One thread, no HTTP, no Ray."""

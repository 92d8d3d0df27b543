"""The SDXL engine: weights from recipes, images from weights. One thread, no HTTP, no Ray."""

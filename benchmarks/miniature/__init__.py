"""Training and evaluation of the miniature and its library."""

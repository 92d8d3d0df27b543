"""Training and evaluation of the miniature and its library, which serving/commons ships."""

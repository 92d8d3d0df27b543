"""The library: what exists, whose it is, what it fits, and where its bytes are."""

"""Wire formats of other services' APIs, one package each."""

"""Other services' APIs, each in a package of its own: what they send and expect on the wire."""

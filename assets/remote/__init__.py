"""Other sites that assets are imported from, reached through a client with guards."""

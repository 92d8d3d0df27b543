"""What the platform itself provides: a small model that draws, and a public library for it."""

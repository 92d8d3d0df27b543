"""Settings become objects: what both ways to run the platform share."""

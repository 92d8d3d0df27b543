"""A tenant's library: its assets, their uploads and how names become content."""

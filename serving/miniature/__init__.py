"""The model and assets that come with the platform: the miniature and its public library."""

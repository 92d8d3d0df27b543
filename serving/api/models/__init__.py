"""The bodies of responses, by topic. Fields that were not set are absent."""

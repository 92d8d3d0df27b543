"""The request and response bodies of OctoAI's API."""

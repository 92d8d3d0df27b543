"""Image generation: its values, and the service that runs a request."""

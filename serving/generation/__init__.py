"""Image generation: the request and result values, and the service that runs a request."""

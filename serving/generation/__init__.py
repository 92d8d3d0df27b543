"""A request for images, from names to a result: its values and the service that answers it."""

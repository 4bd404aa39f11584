"""The HTTP door: the server, and one module a resource."""

"""The HTTP API: the server, and one module per resource."""

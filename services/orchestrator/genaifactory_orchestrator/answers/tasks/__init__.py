"""The tasks: what a route does with a request, one file each behind one protocol."""

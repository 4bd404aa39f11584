"""The tasks of routes, one file each, behind one protocol."""

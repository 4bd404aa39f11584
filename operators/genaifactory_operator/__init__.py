"""Keeps the platform's objects on a cluster as they should be."""

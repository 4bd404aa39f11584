"""Engines as replicas on a Ray cluster."""

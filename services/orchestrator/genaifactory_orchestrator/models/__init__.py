"""Calls of models: backends, retries, circuits, prices, one answer from a chain of models."""

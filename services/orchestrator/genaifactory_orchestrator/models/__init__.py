"""Calls of models: backends, retries, circuit breakers, prices, and one answer from a chain of models."""

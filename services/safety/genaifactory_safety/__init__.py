"""Guardrails: verdicts on a text and on a stream."""

"""Runs, adapters and their stages in MLflow."""

"""The improvement loop: what the platform recorded becomes datasets, adapters, verdicts and releases."""

"""The orchestrator's stores on disk: the outbox, the cache, conversations."""

"""What the orchestrator keeps on disk: the outbox, the cache, conversations."""

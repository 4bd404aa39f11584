"""Documents in, passages out: ingestion, versioned indexes, hybrid search."""

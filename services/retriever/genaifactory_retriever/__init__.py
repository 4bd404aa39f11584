"""The retriever: ingestion of documents, versioned indexes, hybrid search."""

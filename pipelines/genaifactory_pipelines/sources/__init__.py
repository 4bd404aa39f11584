"""Sources of documents: what is in them, and a knowledge base that is brought to their state."""

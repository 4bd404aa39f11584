"""The path of an answer: checks, retrieval, model calls, citations."""

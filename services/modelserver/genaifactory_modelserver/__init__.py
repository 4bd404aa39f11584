"""Generates tokens and embeddings behind one Engine protocol."""

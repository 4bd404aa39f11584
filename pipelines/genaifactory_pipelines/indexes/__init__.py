"""Index versions of a knowledge base: built beside the active one, compared with it, reported."""

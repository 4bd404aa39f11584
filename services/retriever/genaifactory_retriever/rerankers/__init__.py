"""Reranking: models that order the best passages of the fusion, one in each module."""

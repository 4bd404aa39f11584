"""Evaluators, one in each module that has the name of its score, with a function `make` that returns it."""

"""Suites, one in each module that has its name, with a function `make` that returns it."""

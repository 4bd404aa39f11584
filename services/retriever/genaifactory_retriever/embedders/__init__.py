"""Models that turn texts into vectors, one in each module."""

"""The steps, one in each module."""

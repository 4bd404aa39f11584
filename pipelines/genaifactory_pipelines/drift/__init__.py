"""Drift: whether the interactions of one window of time differ from those of another, by which signals, how surely."""

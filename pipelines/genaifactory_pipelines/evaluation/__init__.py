"""Evaluation: what an answer is worth, how sure a difference is, and the gate that a candidate has to pass."""

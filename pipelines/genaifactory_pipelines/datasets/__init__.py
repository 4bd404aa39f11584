"""Datasets: the contract of their lines, how records become examples, and what makes a split safe to train on."""

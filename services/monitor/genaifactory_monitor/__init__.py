"""Every interaction on record: usage, cost, feedback, export."""

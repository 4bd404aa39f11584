"""The monitor: every interaction on record, with its feedback, usage and cost."""

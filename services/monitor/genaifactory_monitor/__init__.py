"""The monitor: stores every interaction, with its feedback, usage and cost."""

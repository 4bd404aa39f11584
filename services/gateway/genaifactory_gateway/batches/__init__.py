"""Files and batches of OpenAI's API: stored by monitor, answered here when there is room."""

"""The path of an answer, from a client's request to the recorded interaction."""

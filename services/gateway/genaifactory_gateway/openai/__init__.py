"""The JSON of OpenAI's API: strict parsing of requests, and responses."""

"""The JSON of OpenAI's API, read strictly and written."""

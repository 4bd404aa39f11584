"""The one door for clients: OpenAI's HTTP API and gRPC on one admission path."""

"""The gateway, the entry for clients: OpenAI's HTTP API and gRPC with the same admission."""

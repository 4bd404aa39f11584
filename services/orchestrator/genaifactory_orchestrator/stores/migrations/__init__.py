"""The steps from an empty database to `conversations_schema`, run when the conversations are opened."""

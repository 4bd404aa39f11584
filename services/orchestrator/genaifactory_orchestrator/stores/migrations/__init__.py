"""Migrations from an empty database to `conversations_schema`, run when the store is opened."""

"""The steps from an empty database to `schema`, run when the database is opened."""

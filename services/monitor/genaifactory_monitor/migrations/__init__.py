"""The steps from an empty database to `schema`, run by `database.migrate`."""

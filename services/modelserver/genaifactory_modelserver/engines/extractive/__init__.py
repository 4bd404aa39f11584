"""The engine without weights, which quotes the given documents."""

"""Parses files into documents, within bounds."""

"""Files to documents, within bounds."""

"""Models' files: where they come from, downloads, checksums, room on disk."""

"""One parser a format, each with a function `parse`."""

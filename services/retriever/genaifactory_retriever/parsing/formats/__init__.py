"""One parser per format, each with a function `parse`."""

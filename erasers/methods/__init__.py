"""One file, one published method."""

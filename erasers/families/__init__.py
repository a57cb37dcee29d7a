"""One file, one model family: a row of facts."""

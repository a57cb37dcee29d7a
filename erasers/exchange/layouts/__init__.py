"""One file, one layout: how its files are recognised, read and, where erasers fit into it, written."""

"""One file = one probe; the registry finds it."""

"""One file = one attack; the registry finds it."""

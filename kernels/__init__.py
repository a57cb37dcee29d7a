"""How fast. Knows torch only."""

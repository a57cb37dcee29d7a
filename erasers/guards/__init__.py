"""Guards: one file each; see erasers/guard.py."""

"""How an erasure is measured and shown."""

"""Steps that gradient methods share."""

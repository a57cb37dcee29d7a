"""Solves and low-rank algebra that methods share."""

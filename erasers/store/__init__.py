"""Eraser files."""

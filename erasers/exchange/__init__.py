"""Erasers from and for other programs: what their files are called and hold."""

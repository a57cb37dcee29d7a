"""Builds a ComfyUI host, runs its server, and talks to it: for the tests, the demo and the benchmarks.

Needs nothing but Python itself, so it can run before anything is installed.
"""

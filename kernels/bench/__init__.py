"""Benchmarks: `python -m lethe.kernels.bench`. They print ratios taken in one run, and assert nothing."""

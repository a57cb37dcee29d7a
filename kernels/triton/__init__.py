"""Kernels in Triton. Importing one of these files needs Triton; `kernels.dispatch` asks before it does."""

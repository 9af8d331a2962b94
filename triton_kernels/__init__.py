"""Triton kernels of the GPU paths, each beside a torch reference that defines what it computes.

This folder is empty until the GPU paths are built. Packing scattered KV blocks into one contiguous
buffer and unpacking them again will live here, one file per kernel, with `test_<kernel>.py` in
tests/ and `<kernel>.py` in benchmarks/ beside it.
"""

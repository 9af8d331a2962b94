"""The tests: their files mirror the sources, and `tests.processes` runs several processes."""

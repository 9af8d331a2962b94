"""Fuzzing: bytes that nobody meant, for what reads bytes of others. `python -m tests.fuzz`."""

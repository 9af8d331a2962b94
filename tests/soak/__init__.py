"""The soak: processes that move random bytes for a long time while links and processes fail."""

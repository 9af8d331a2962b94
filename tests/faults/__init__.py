"""Tests that try to break the promises P1 to P7, over real sockets and real processes."""

"""Tests that need RDMA devices: `make test-rdma` runs them in a virtual machine that has some."""

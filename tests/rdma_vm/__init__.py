"""A virtual machine with real verbs devices (soft-RoCE): `python -m tests.rdma_vm`."""

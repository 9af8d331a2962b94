"""Stage: tests. Programs on torch.distributed, unchanged but for the backend's name."""

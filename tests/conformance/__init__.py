"""Stage: tests. PyTorch's own suite for backends, run on "tent" and, as control, on "gloo"."""

"""A program as Python source over JAX, and that source as a callable."""

"""Pointwise work before and after a kernel, computed inside it."""

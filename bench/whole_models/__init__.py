"""Whole models compiled for a TPU: from torch by us, and written by hand in JAX."""

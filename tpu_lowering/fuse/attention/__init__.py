"""Attention in a graph, and JAX's library kernels for it."""

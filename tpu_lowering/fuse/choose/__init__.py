"""Choosing between XLA's form of a computation and several kernels."""

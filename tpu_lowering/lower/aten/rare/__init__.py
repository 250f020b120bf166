"""Rows of rarely used operators: long numerical methods of their own."""

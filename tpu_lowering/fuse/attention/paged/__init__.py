"""Attention over keys and values that are gathered from pages."""

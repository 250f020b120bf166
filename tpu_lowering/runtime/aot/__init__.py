"""Ahead of time: programs compiled for a TPU that is not there, by libtpu's own compiler."""

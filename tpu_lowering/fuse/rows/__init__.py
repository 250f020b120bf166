"""Regions that reduce rows, as one kernel: what it computes, in which blocks, and its source."""

"""Iteration spaces: what each node does to one, and the regions that share one."""

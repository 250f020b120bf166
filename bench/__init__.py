"""Benchmarks: kernels in destination-passing style, and what each program costs."""

GROUPS = ("seed", "growth", "kernels", "models", "fusion", "opinfo", "suite")
TARGETS = ("tpu7x", "v5e", "v6e")

"""Benchmarks: kernels in destination-passing style, and what each program costs."""

"""Compiled programs, called with torch tensors: on the CPU, on JAX's devices, under torch_tpu and torch_xla."""

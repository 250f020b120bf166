"""Functions of JAX, Pallas and Helion as ``Kernel`` values, and how they run where there is no TPU."""

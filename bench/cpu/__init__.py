"""Speed on this machine's CPU: ours beside plain JAX, eager, both of Inductor's backends and Helion's launcher."""

SECTIONS = ("kernels", "dispatch", "decode", "models", "training", "bfloat16", "cache", "layers", "profiles")

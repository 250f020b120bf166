"""Speed on this machine's CPU: ours beside plain JAX, eager, both of Inductor's backends and Helion's launcher."""

SECTIONS = ("kernels", "dispatch", "decode", "models", "cache", "layers", "profiles")

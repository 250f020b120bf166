"""Pure facts about graphs and kernels: what is undefined, what a kernel touches, where programs are cut."""

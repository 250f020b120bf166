"""Every form that AOTAutograd writes, to one: sizes are numbers, kernels are ``kernel_call``, views are boxes."""

"""``passes.apply``: a pass for the ATen graphs of other backends."""

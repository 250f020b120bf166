"""The operator tests run on JAX's CPU backend, whatever else the machine has."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

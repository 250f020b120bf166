"""Tests run on JAX's CPU backend, whatever else is installed."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

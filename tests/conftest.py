"""Tests run on JAX's CPU backend, whatever else is installed, and find their helper modules beside them."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

for folder in sorted(path for path in pathlib.Path(__file__).parent.iterdir() if path.is_dir()):
    sys.path.append(str(folder))
sys.path.append(str(pathlib.Path(__file__).parent.parent))

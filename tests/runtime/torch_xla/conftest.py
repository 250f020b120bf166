"""Tests of the torch_xla runtime: they run where torch_xla is installed, on its CPU (`make test-xla`).

Elsewhere only ``test_without_torch_xla.py`` runs.
"""

import importlib.util
import os

os.environ.setdefault("PJRT_DEVICE", "CPU")

if importlib.util.find_spec("torch_xla") is None:
    collect_ignore_glob = ["test_xla_*.py"]
else:
    collect_ignore_glob = ["test_without_torch_xla.py"]

"""Tests of the torch_tpu runtime: they run where torch_tpu is installed, without a TPU (`make test-tpu`).

Elsewhere only ``test_launched_values.py`` and ``test_without_torch_tpu.py`` run.
"""

import importlib.util

if importlib.util.find_spec("torch_tpu") is None:
    collect_ignore_glob = ["test_tpu_*.py"]
else:
    collect_ignore_glob = ["test_without_torch_tpu.py"]

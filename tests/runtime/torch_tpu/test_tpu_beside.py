"""torch_tpu and this package in one environment: neither changes what the other does."""

from __future__ import annotations

from importlib import metadata

import pytest

from tests.backend.alone import STATE
from tests.runtime.torch_tpu.tpu_alone import DEVICE, run
from tpu_lowering.report.checks import doctor

BOTH = """
import json, os

def done(**found):
    print(json.dumps(found), flush=True)
    os._exit(0)

def check_backends():
    import torch
    from torch._dynamo.backends import registry
    from torch_tpu._internal.compile import TpuBackend

    def model(x):
        return torch.softmax(x * 2, -1) + 1

    x = torch.randn(8, 16)
    backends = {"inductor": {}, "helion_tpu": {"fullgraph": True}, "aot_eager": {}}
    return {
        "tpu": type(registry.lookup_backend("tpu")) is TpuBackend,
        "ours": registry.lookup_backend("helion_tpu").__module__,
        "listed": sorted(set(torch._dynamo.list_backends()) & {"tpu", "helion_tpu", "inductor"}),
        "same": [
            torch.allclose(torch.compile(model, backend=name, **options)(x), model(x), atol=1e-6)
            for name, options in backends.items()
        ],
    }
"""
EXPECTED = {
    "tpu": True,
    "ours": "tpu_lowering.backend",
    "listed": ["helion_tpu", "inductor", "tpu"],
    "same": [True, True, True],
}


@pytest.mark.parametrize("order", ["torch_tpu, tpu_lowering", "tpu_lowering, torch_tpu", "torch"])
def test_imports_in_any_order(order: str) -> None:
    """With ``torch`` alone both are found by their entry points."""
    assert run(f"import {order}\ndone(**check_backends())", prelude=BOTH) == EXPECTED


def test_with_torch_tpus_device() -> None:
    """Once it has made its device, ``torch.compile`` and Inductor are torch_tpu's versions, and stay so."""
    found = run(
        BOTH,
        """
        ours = {"compile": torch.compile, "call": torch._TorchCompileInductorWrapper.__call__}
        torch.set_grad_enabled(True)
        with_device = check_backends()
        import tpu_lowering.backend, tpu_lowering.aot, tpu_lowering.passes
        done(
            backends=with_device, theirs=[function.__code__.co_name for function in ours.values()],
            same=torch.compile is ours["compile"] and torch._TorchCompileInductorWrapper.__call__ is ours["call"],
        )
        """,
        prelude=DEVICE,
    )
    assert found["backends"] == EXPECTED
    assert found["same"] and found["theirs"] == ["_default_tpu_compile", "_tpu_inductor_wrapper_call"]


def test_importing_us_beside_torch_tpu_changes_nothing() -> None:
    """torch's, JAX's and Dynamo's settings, the environment and the backends, before and after."""
    found = run(
        STATE,
        """
        import sys
        theirs = {name: module for name, module in sys.modules.items() if name.startswith("torch_tpu")}
        import tpu_lowering
        compare(before, state())
        after = {name: module for name, module in sys.modules.items() if name.startswith("torch_tpu")}
        done(loaded=len(theirs) > 10, same=theirs == after)
        """,
        prelude=BOTH,
    )
    assert found == {"loaded": True, "same": True}


def test_torch_tpu_is_not_imported_for_tensors_on_the_cpu() -> None:
    """Where torch is told not to load its backends, ours runs without torch_tpu."""
    found = run(
        """
        import os
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        import sys, torch
        y = torch.compile(lambda x: x * 2 + 1, backend="helion_tpu")(torch.ones(3))
        done(y=y.tolist(), loaded="torch_tpu" in sys.modules)
        """,
        prelude=BOTH,
    )
    assert found == {"y": [3.0, 3.0, 3.0], "loaded": False}


def test_the_doctor() -> None:
    assert doctor._with_device("torch_tpu") == doctor.Finding("torch_tpu", "ok", "0.2.0")
    runtime = doctor._tpu_runtime()
    assert (runtime.state, runtime.found) == ("missing", "this machine has no TPU that torch_tpu knows")


def test_entry_points() -> None:
    backends = {entry.name: entry.value for entry in metadata.entry_points(group="torch_dynamo_backends")}
    devices = {entry.name: entry.value for entry in metadata.entry_points(group="torch.backends")}
    assert backends == {"helion_tpu": "tpu_lowering.backend:entry_point"}
    assert devices == {"torch_tpu": "torch_tpu._loader:load"}

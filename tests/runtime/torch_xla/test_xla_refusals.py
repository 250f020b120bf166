"""What the torch_xla runtime refuses: mixed devices, results elsewhere, other releases, other hardware."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.runtime.torch_xla.xla_watch import compiled, on_xla, same
from tpu_lowering import errors, releases
from tpu_lowering.kernels import xla_tensors


def refusal(function: Callable[..., Any], *arguments: Any) -> errors.Refusal:
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(function)(*arguments)
    found = caught.value.inner_exception
    assert isinstance(found, errors.TpuLoweringError)
    return found.refusal


def test_tensors_on_two_devices() -> None:
    (x,) = on_xla([torch.ones(3)])
    found = refusal(lambda x, y: (x * 2, y * 2), x, torch.ones(3))
    assert found.code == "TL103" and found.subject == "cpu, xla:0"
    assert found.reason == "expected all tensors on one device, got cpu and xla:0"
    assert found.remedy == "move the model and its inputs to one device with .to(device)"


def test_a_single_number_on_the_cpu_is_taken() -> None:
    (x,) = on_xla([torch.ones(3)])
    with torch.no_grad():
        same(torch.full((3,), 5.0), compiled(lambda x, y: x * y)(x, torch.tensor(5.0)))


def test_a_number_on_the_cpu_that_is_written_to() -> None:
    (x,) = on_xla([torch.ones(3)])

    def model(x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        count.add_(1)
        return x * 2

    assert refusal(model, x, torch.tensor(0)).code == "TL103"


def test_a_result_on_the_cpu() -> None:
    (x,) = on_xla([torch.ones(3)])
    found = refusal(lambda x: (x * 2, x.sum().cpu()), x)
    assert found.code == "TL103"
    assert found.reason == "expected all results on the device of the arguments (xla), got one on cpu"


def test_a_result_on_xla_of_arguments_on_the_cpu() -> None:
    assert refusal(lambda x: x.to("xla") * 2, torch.ones(3)).code == "TL103"


def test_a_jax_device_for_tensors_of_torch_xla() -> None:
    (x,) = on_xla([torch.ones(3)])
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(lambda x: x + 1, device="cpu:0")(x)
    assert str(caught.value.inner_exception) == "\n".join(
        (
            "[TL103] tensors on more than one device: options['device'] = 'cpu:0'",
            "  why  expected tensors on the CPU, which options['device'] moves to a JAX device, got one on xla:0",
            "  fix  leave options['device'] out: the program runs where its tensors are",
        )
    )


def test_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = releases.version
    monkeypatch.setattr(releases, "version", lambda name: "2.8.0" if name == "torch_xla" else installed(name))
    releases.warn_of_untested.cache_clear()
    with pytest.warns(RuntimeWarning) as caught:
        releases.check("torch_xla", "xla")
        releases.check("torch_xla", "xla")
    releases.warn_of_untested.cache_clear()
    assert [str(warning.message) for warning in caught] == [
        "[TL105] package missing or outside the tested versions: torch_xla\n"
        "  why  torch_xla 2.8.0, tested with 2.9.0\n"
        "  fix  pip install torch_xla==2.9.0"
    ]


def test_other_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_xla.runtime

    monkeypatch.setattr(torch_xla.runtime, "device_type", lambda: "CUDA")
    with pytest.raises(errors.TpuLoweringError) as caught:
        xla_tensors.platform.__wrapped__()
    assert caught.value.code == "TL104"
    assert caught.value.refusal.remedy == "start Python with PJRT_DEVICE=TPU or PJRT_DEVICE=CPU"


def test_views_of_one_tensor_of_which_one_is_written_to() -> None:
    (base,) = on_xla([torch.arange(12.0).reshape(3, 4)])

    def model(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return b * 2

    found = refusal(model, base[:2], base[1:])
    assert found.code == "TL110"
    assert found.remedy.startswith("pass the tensor itself and cut the views inside the compiled function")


SPREAD = """
import numpy, torch, torch_xla
import torch_xla.distributed.spmd as spmd
import torch_xla.runtime as runtime

runtime.use_spmd()
mesh = spmd.Mesh(numpy.arange(runtime.global_runtime_device_count()), (1,), ("data",))
plain, x = torch.ones(8, 4, device="xla"), torch.ones(8, 4, device="xla")
compiled = torch.compile(lambda x: x * 2 + 1, backend="helion_tpu", fullgraph=True)
with torch.no_grad():
    print(float(compiled(plain).sum()))
    spmd.mark_sharding(x, mesh, ("data", None))
    try:
        compiled(x)
    except Exception as error:
        print(error)
"""


def test_tensors_that_mark_sharding_has_spread() -> None:
    """In a process of its own: torch_xla's SPMD mode is for all of a process."""
    done = subprocess.run([sys.executable, "-c", SPREAD], capture_output=True, text=True, timeout=300, check=True)
    first, *refused = done.stdout.splitlines()
    assert float(first) == 96.0
    assert refused[0] == ("[TL707] tensors that no ranks can share a program on: input 0 of the program, (8, 4)")
    assert refused[1].startswith(
        "  why  expected tensors on one device, got one that torch_xla's mark_sharding has spread: "
    )

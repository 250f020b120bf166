"""Which devices can be named, and the program that a TPU would be given."""

from __future__ import annotations

import textwrap

import jax
import pytest
import torch

from tests.backend.alone import run_alone
from tpu_lowering.errors import TpuLoweringError
from tpu_lowering.options import Options
from tpu_lowering.runtime.places import device_names, find_device

REMEDY = (
    "choose one of them, or make JAX find the device: install its plugin (libtpu for a TPU), and let JAX_PLATFORMS name "
    "the platform; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N CPU devices"
)


def test_devices_by_name() -> None:
    assert find_device("cpu:0") == find_device("cpu") == jax.devices("cpu")[0]
    assert device_names() == [f"cpu:{index}" for index in range(jax.local_device_count("cpu"))]


@pytest.mark.parametrize("name", ["tpu:0", "abacus", "cpu:99"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch._dynamo.reset()
        torch.compile(lambda x: x + 1, backend="helion_tpu", options={"device": name})(torch.ones(2))
    assert str(caught.value.inner_exception) == "\n".join(
        (
            f"[TL104] device has no runtime: JAX device {name!r}",
            f"  why  expected one of {', '.join(device_names())}, got {name!r}",
            f"  fix  {REMEDY}",
        )
    )


@pytest.mark.parametrize("value", ["cpu:", "cpu:-1", "TPU:0", "cpu:1:2", "0", 1, None])
def test_a_value_that_names_no_device(value: object) -> None:
    with pytest.raises(TpuLoweringError) as caught:
        Options.create({"device": value})
    assert caught.value.code == "TL102" and "'device'" in str(caught.value)
    if isinstance(value, str):
        assert str(caught.value) == "\n".join(
            (
                "[TL102] option has the wrong type or value: 'device'",
                f"  why  expected a JAX platform and the number of a device, such as 'tpu:0' or 'cpu:1', got {value!r}",
                "  fix  pass a JAX platform and the number of a device, such as 'tpu:0' or 'cpu:1' as options['device']",
            )
        )


def test_the_first_cpu_device_is_a_device_like_any_other() -> None:
    torch._dynamo.reset()
    weight = torch.nn.Parameter(torch.ones(64, 64))
    run = torch.compile(lambda x: x @ weight, backend="helion_tpu", options={"device": "cpu:0"})
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(64, 64)
            torch.testing.assert_close(run(x), x @ weight)
            weight.mul_(2)


def test_tensors_are_on_the_cpu() -> None:
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(lambda x: x + 1, backend="helion_tpu", options={"device": "cpu:0"})(torch.ones(2, device="meta"))
    assert "[TL104] device has no runtime: meta" in str(caught.value)


def test_importing_the_runtime_starts_no_device() -> None:
    run_alone(
        """
        import jax, tpu_lowering.runtime.device
        from jax._src import xla_bridge
        assert not xla_bridge.backends_are_initialized()
        """
    )


def test_the_program_for_a_tpu() -> None:
    """What would run on a TPU, compiled by libtpu: a Mosaic kernel, and the mutated input updated in place.

    Only the device is another: libtpu's description of a TPU, which programs can be compiled for, but not run on.
    """
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    program = """
        import os
        from tpu_lowering.runtime.aot.compiler import ENVIRONMENT
        os.environ.update(ENVIRONMENT)
        import jax, torch
        from jax.experimental import topologies
        from bench.kernels import KERNELS
        from tpu_lowering import backend, errors
        from tpu_lowering.runtime import device, places
        from tpu_lowering.ir import chips

        topology = topologies.get_topology_desc(platform="tpu", topology_name=chips.find("tpu7x").topology)
        places.find_device = lambda name: topology.devices[0]
        compiled = []

        class Compiled(Exception):
            pass

        def compile_for(*arguments):
            compiled.append(real(*arguments))
            raise Compiled

        real, device.compile_for = device.compile_for, compile_for
        (case,) = (case for case in KERNELS if case.name == "exp")

        def step(x, cache):
            cache.add_(case.model(x))
            return cache.sum()

        x = torch.zeros(1024, 1024)
        try:
            torch.compile(step, backend="helion_tpu", fullgraph=True, options={"device": "tpu:0"})(x, x.clone())
        except torch._dynamo.exc.BackendCompilerFailed as error:
            assert isinstance(error.inner_exception, Compiled), error
        text = compiled[0].as_text()
        print(text.count('custom_call_target="tpu_custom_call"'), "input_output_alias={ {1}: (0," in text)
    """
    assert run_alone(textwrap.dedent(program)).splitlines()[-1] == "1 True"

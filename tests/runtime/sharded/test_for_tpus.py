"""What a mesh of TPUs would be given, compiled by libtpu: only the devices are others, which cannot be run on."""

from __future__ import annotations

import textwrap

import pytest

from tests.backend.alone import run_alone

PROGRAM = """
import os
from tpu_lowering.runtime.aot.compiler import ENVIRONMENT
os.environ.update(ENVIRONMENT)
import jax, jax.numpy as jnp, torch
from jax.experimental import pallas as pl, topologies
from tpu_lowering import kernel_op
from tpu_lowering.runtime import device, places

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
places.jax.devices = lambda platform: topology.devices
compiled = []


class Compiled(Exception):
    pass


def compile_for(*arguments):
    compiled.append(real(*arguments))
    raise Compiled


real, device.compile_for = device.compile_for, compile_for


@kernel_op("tpus::exp_into", mutates_args=("out",), sharding="rows _, rows _ -> rows _")
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x_ref, _, out_ref):
        out_ref[...] = jnp.exp(x_ref[...])

    block, shape = pl.BlockSpec((8, 128), lambda i: (i, 0)), jax.ShapeDtypeStruct(out.shape, out.dtype)
    return pl.pallas_call(
        body, grid=(x.shape[0] // 8,), in_specs=[block, block], out_specs=block, out_shape=shape,
        input_output_aliases={1: 0},
    )(x, out)


def step(x, weight, cache):
    x = x @ weight
    out = torch.empty_like(x)
    torch.ops.tpus.exp_into(x, out)
    cache.add_(out)
    return torch.softmax(cache, -1)


options = {"mesh": {"data": 2, "model": 2}, "shardings": {"x": ("data",), "cache": ("data",)}, "device": "tpu"}
given = torch.zeros(256, 64), torch.zeros(64, 128), torch.zeros(256, 128)
try:
    torch.compile(step, backend="helion_tpu", fullgraph=True, options=options)(*given)
except torch._dynamo.exc.BackendCompilerFailed as error:
    assert isinstance(error.inner_exception, Compiled), error
text = compiled[0].as_text()
(kernel,) = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
print("f32[128,128]" in kernel, "all-" in text, "input_output_alias={ {1}: (2," in text)
"""


def test_the_program_of_a_mesh() -> None:
    """A Mosaic kernel over one device's rows, no communication, the mutated input updated in place, nothing fused."""
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    assert run_alone(textwrap.dedent(PROGRAM)).splitlines()[-1] == "True False True"

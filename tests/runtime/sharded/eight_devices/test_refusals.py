"""What cannot be on a mesh is refused, word for word."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import tpu_lowering
from tests.runtime.sharded.eight_devices.conftest import MESH, refused, sharded
from tests.runtime.sharded.llama import SHARDINGS, Llama, batch
from tpu_lowering.ir import graphs


def test_a_mesh_of_more_devices_than_there_are() -> None:
    assert refused(lambda x: x + 1, {}, torch.ones(2), mesh={"data": 3, "model": 3}) == (
        "[TL104] device has no runtime: a mesh of data 3 x model 3\n"
        "  why  expected 9 devices of JAX's, got 8 of platform 'cpu'\n"
        "  fix  give the mesh as many devices as there are; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N CPU "
        "devices, and jax.distributed.initialize() those of other processes"
    )
    assert "expected 8 devices of JAX's, got 0 of platform 'tpu'" in refused(
        lambda x: x + 1, {}, torch.ones(2), mesh=MESH, device="tpu"
    )


def test_a_name_that_nothing_has() -> None:
    table = {**SHARDINGS, "layers.*.mlp.gate_prj.weight": ("model",)}
    assert refused(Llama(1), table, *batch()) == (
        "[TL714] name in shardings that nothing has: options['shardings']['layers.*.mlp.gate_prj.weight']\n"
        "  why  expected the name of a parameter, a buffer, an argument or a module of the function, got "
        "'layers.*.mlp.gate_prj.weight'\n"
        "  fix  the nearest names are 'layers.0.mlp.gate_proj.weight', 'layers.0.mlp.up_proj.weight', "
        "'layers.0.mlp.down_proj.weight'; compile with fullgraph=True, so that the function is one graph"
    )


def test_a_size_that_does_not_divide() -> None:
    assert refused(Llama(1, inner=36), {"layers.*.mlp.gate_proj.weight": (("data", "model"),)}, *batch()) == (
        "[TL713] sharding that does not fit a tensor: layers.0.mlp.gate_proj.weight, by "
        "options['shardings']['layers.*.mlp.gate_proj.weight']\n"
        "  why  expected a multiple of 8, which is how many devices stand along 'data' and 'model', as the size of "
        "dimension 0, got 36\n"
        "  fix  split another dimension, or pad this one to such a size"
    )


def test_more_axes_than_dimensions() -> None:
    assert "expected axes for at most 1 dimensions, got 2 for the shape [32]" in refused(
        Llama(1), {"norm.weight": (None, "model")}, *batch()
    )


def test_the_result_of_a_module() -> None:
    text = refused(Llama(1, inner=36), {"layers.*.mlp.gate_proj": (None, None, ("data", "model"))}, *batch())
    assert re.sub(r"llama\.py:\d+", "llama.py:LINE", text) == (
        "[TL713] sharding that does not fit a tensor: the result of layers.0.mlp.gate_proj, by "
        "options['shardings']['layers.*.mlp.gate_proj']\n"
        "  at   llama.py:LINE in forward: return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))\n"
        "  why  expected a multiple of 8, which is how many devices stand along 'data' and 'model', as the size of "
        "dimension 2, got 36\n"
        "  fix  split another dimension, or pad this one to such a size"
    )


def test_sizes_that_come_later() -> None:
    run = torch.compile(
        lambda x: x * 2, backend="helion_tpu", fullgraph=True, dynamic=True,
        options={"mesh": MESH, "shardings": {"x": ("data",)}, "device": "cpu"},
    )  # fmt: skip
    assert torch.equal(run(torch.ones(8, 3)), torch.full((8, 3), 2.0))
    with pytest.raises(Exception, match=r"\[TL713\].*: x, by options(.|\n)*expected a multiple of 4.*got 6"):
        run(torch.ones(6, 3))


def test_tensors_elsewhere() -> None:
    text = refused(lambda x: x + 1, {"x": ("data",)}, torch.ones(8, device="meta"))
    assert "[TL104] device has no runtime: meta" in text


@pytest.mark.parametrize("passes", ["fuse_rows", "simplify_views,fuse_around_kernels"])
def test_passes_that_make_kernels(passes: str) -> None:
    text = refused(lambda x: torch.softmax(x, -1), {"x": ("data",)}, torch.ones(8, 8), passes=passes)
    assert text == (
        "[TL113] text that is no pipeline: 'passes'\n"
        "  why  expected passes that make no kernels, because XLA would run those whole on every device of the mesh; got "
        f"{passes.split(',')[-1]}\n"
        "  fix  python -m tpu_lowering pipeline prints the text that is the default; leave passes out of it"
    )


def test_fusion_is_left_out(programs: Any) -> None:
    x = torch.randn(8, 256)
    function = lambda x: torch.softmax(x, -1)  # noqa: E731
    torch.testing.assert_close(sharded(function, {"x": ("data",)}, fuse="always")(x), function(x))
    assert not graphs.kernel_calls(programs[0].program.module.graph)
    options = {"mesh": MESH, "shardings": {"x": ("data",)}, "device": "cpu", "fuse": "always"}
    (remark,) = tpu_lowering.explain(function, x, options=options).to_dict()["unfused"]
    assert "TL717" in str(remark)
    assert "XLA partitions the program over data 4 x model 2, and cannot partition a generated kernel" in str(remark)

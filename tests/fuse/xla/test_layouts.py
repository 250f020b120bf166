"""Where arrays lie, as libtpu says, and which softmax XLA makes in one pass: no kernel is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tpu_lowering import aot
from tpu_lowering.fuse.xla.layouts import compact_bytes, order_in_memory, order_of, placed_bytes
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import compiler, hlo
from tpu_lowering.runtime.aot.capture import Captured

SHAPES = ((8, 16, 2048, 64), (80, 160, 80), (5, 5), (160, 5, 160), (8192, 1000), (1000, 8192), (130, 64), (64, 130))


def captured(fn: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> Captured:
    args = [torch.empty(shape) for shape in shapes]
    return aot.capture(fn, args, {}, chips.find("tpu7x"), {"fuse": "tpu"}, ())


def test_padding_is_to_tiles() -> None:
    assert placed_bytes((160, 320, 160), 4) == 4 * 160 * 320 * 256
    assert compact_bytes((160, 320, 160), 4) == 4 * 160 * 160 * 384
    assert placed_bytes((4, 1, 1024), 4) == 4 * 4 * 1024  # one row is no tile of eight
    assert placed_bytes((100,), 4) == 400


def test_arguments_are_placed_as_the_compiler_places_them() -> None:
    target = chips.find("tpu7x")
    one = captured(lambda *xs: sum(x.sum() for x in xs), *SHAPES)  # type: ignore[arg-type, return-value]
    compiled = compiler.compile_artifact(one.artifact, target, (), one.source, False)
    operations = hlo.Module.of(compiled.hlo).entry
    placed = {o.results[0].shape: o.results[0].hbm_bytes for o in operations if o.opcode == "parameter"}
    assert placed == {shape: compact_bytes(shape, 4) for shape in SHAPES}
    assert [shape for shape in SHAPES if order_in_memory(shape) != tuple(range(len(shape)))] == [
        (8, 16, 2048, 64),
        (160, 5, 160),
        (8192, 1000),
        (130, 64),
    ]


@pytest.mark.sweep
@pytest.mark.parametrize(("batch", "channels"), [(8, 320), (64, 64), (16, 128)])
def test_convolutions_place_images_as_the_compiler_does(batch: int, channels: int) -> None:
    """Between two convolutions, where nothing else has a wish."""

    def twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, weight, padding=1), weight, padding=1)

    shapes = ((batch, channels, 32, 32), (channels, channels, 3, 3))
    one = captured(twice, *shapes)
    orders = {
        order_of(node) for node in one.program.module.graph.nodes if node.target is torch.ops.aten.convolution.default
    }
    assert orders == {(2, 3, 0, 1)}
    text = compiler.compile_artifact(one.artifact, chips.find("tpu7x"), (), one.source, False).hlo
    assert re.search(rf"f32\[{batch},{channels},32,32\]{{1,0,3,2\S*}} \w+\(", text)


@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("is_convolved", [True, False])
def test_normed_images_lie_as_convolutions_gave_them(groups: int | None, is_convolved: bool) -> None:
    def fn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        made = F.conv2d(x, weight) if is_convolved else x @ x
        normed = F.batch_norm(made, None, None, training=True) if groups is None else F.group_norm(made, groups)
        return torch.relu(normed)

    args = torch.empty(2, 8, 16, 16), torch.empty(8, 8, 1, 1)
    one = aot.capture(fn, args, {}, chips.find("tpu7x"), {"fuse": "never"}, ())
    orders = [order_of(node) for node in one.program.module.graph.nodes if node.target is torch.ops.aten.relu.default]
    assert orders == [(2, 3, 0, 1) if is_convolved else None]


@pytest.mark.parametrize(
    ("fn", "shape", "kernels"),
    [
        (lambda x: torch.softmax(x, -1), (64, 512, 1024), 0),  # in one pass
        (lambda x: torch.softmax(x, 1), (64, 512, 1024), 0),
        (lambda x: torch.softmax(x, 0), (64, 512, 1024), 1),
        (lambda x: torch.softmax(x, -1), (32768, 1024), 1),
        (lambda x: torch.softmax(x, -1), (8, 2048, 8192), 1),
        (lambda x: torch.log_softmax(x, -1), (64, 512, 1024), 1),
        (lambda x: F.normalize(x, dim=-1), (64, 512, 1024), 1),
        (lambda x: F.normalize(x, dim=-1), (32768, 64), 1),  # columns first, and so the kernel takes it
    ],
)
def test_kernels_are_made_of_what_takes_xla_several_passes(
    fn: Callable[..., torch.Tensor], shape: tuple[int, ...], kernels: int
) -> None:
    assert len(captured(fn, shape).source.kernels) == kernels


def test_a_view_of_a_result_is_taken_of_the_kernel() -> None:
    """The mean that batch_norm saves; without it the rows would be read once more."""
    rows = (160,)
    one = captured(
        lambda x, w, b, mean, var: torch.native_batch_norm(x, w, b, mean, var, True, 0.1, 1e-5)[:2],  # type: ignore[return-value]
        (160, 160, 160), rows, rows, rows, rows,
    )  # fmt: skip
    graph = one.program.module.graph
    assert len(one.source.kernels) == 1
    assert not any(node.target is torch.ops.aten.var_mean.correction for node in graph.nodes)

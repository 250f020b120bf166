"""Images that a forward saves lie in HBM as convolutions have them, in both programs; everything else as before."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tpu_lowering import aot
from tpu_lowering.aot import aot_compile
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot.step import TpuStep

TPU7X = chips.find("tpu7x")
IMAGES = (16, 64, 56, 56)


def blocks() -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(2):
        parts += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*parts).to(torch.bfloat16)


def images() -> torch.Tensor:
    return torch.randn(IMAGES, dtype=torch.bfloat16).to(memory_format=torch.channels_last)


def orders(text: str, results: bool) -> list[str]:
    """How the images among a program's results or arguments lie, the innermost dimension first."""
    line = text.partition("entry_computation_layout=")[2].partition("\n")[0]
    return re.findall(r"bf16\[16,64,56,56\]\{([\d,]+):", line.split("->")[1 if results else 0])


def moved(step: TpuStep) -> int:
    """Bytes of operations that only lay images out again."""
    copies = [o for one in step.programs for o in one.entry_operations if o.opcode in ("copy", "transpose")]
    return sum(o.hbm_bytes_read + o.hbm_bytes_written for o in copies)


def test_saved_images_lie_as_convolutions_have_them() -> None:
    net = blocks()
    step = aot_compile(lambda x: net(x).float().square().mean(), (images(),), target=TPU7X.name, backward=True)
    assert isinstance(step, TpuStep)
    saved = [one for one in step.saved if one.shape == IMAGES and one.memory == "own"]
    given, taken = orders(step.forward.hlo, True), orders(step.backward.hlo, False)
    assert given == ["1,0,3,2"] * len(saved) and len(saved) > 2
    assert sorted(taken) == sorted([*given, *orders(step.forward.hlo, False)])  # and the input as it was
    assert moved(step) < images().nbytes


def test_a_result_that_the_caller_gets_lies_as_jax_chooses() -> None:
    net = blocks()

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = net[0](x)
        return made, net[1:](made).float().square().mean()

    captured = aot.capture_step(function, (images(),), {}, TPU7X, {"fuse": "never"})
    results = captured[0].orders[1]
    assert results[0] is None and any(results)


def test_orders_agree_between_the_programs() -> None:
    net = blocks()
    forward, backward = aot.capture_step(lambda x: net(x).sin().sum(), (images(),), {}, TPU7X, {"fuse": "never"})
    given = [order for order in forward.orders[1] if order is not None]
    taken = [order for order in backward.orders[0] if order is not None]
    assert sorted(given) == sorted(taken) == [(2, 3, 0, 1)] * len(given) and given
    assert not any(forward.orders[0]) and not any(backward.orders[1])


def attention(x: torch.Tensor) -> torch.Tensor:
    """Four dimensions, and no images."""
    return (x.softmax(-1) @ x.sin().mT).sum()


def volumes(x: torch.Tensor) -> torch.Tensor:
    """Rows of one spatial dimension."""
    return torch.conv1d(x[0], x[0, :, :, :3]).sin().sum()


@pytest.mark.parametrize("function", [attention, volumes])
def test_what_is_no_image_lies_as_before(function: object) -> None:
    x = torch.randn(4, 8, 32, 32, requires_grad=True)
    captured = aot.capture_step(function, (x,), {}, TPU7X, {"fuse": "never"})  # type: ignore[arg-type]
    assert [one.orders for one in captured] == [((), ())] * 2


def test_a_forward_alone_lies_as_before() -> None:
    (captured,) = aot.capture_step(blocks().requires_grad_(False), (images(),), {}, TPU7X, {"fuse": "never"})
    assert captured.orders == ((), ())

"""Batch norms that the backward of a TPU computes again: what is saved, values against eager, and what stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from tests.capture.test_recompute_rows import Seen, compiled
from tpu_lowering import aot
from tpu_lowering.capture import partition
from tpu_lowering.capture.recompute_norms import recompute_norms
from tpu_lowering.capture.recompute_rows import recompute_rows
from tpu_lowering.ir import chips
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.runtime.aot.step import TpuStep

aten = torch.ops.aten
bf16, f32 = torch.bfloat16, torch.float32
IMAGES = (2, 8, 16, 16)
Net = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def as_for_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joint graphs of the CPU are partitioned as those of a TPU."""
    torch._dynamo.reset()
    monkeypatch.setattr(
        partition,
        "recompute_rows",
        lambda graph, results: recompute_rows(graph, results) + recompute_norms(graph, results),
    )


def convolution() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, bias=False)


class Block(nn.Module):
    """Convolutions with norms between them, and a way around the second."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.last = convolution(), convolution(), convolution()
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.first(x) + self.offset))
        x = torch.relu(self.norm2(self.second(x)) + x)
        return self.last(x).float().square()


def prepared(net: nn.Module, dtype: torch.dtype, narrow_norms: bool = True) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.2, 0.3)
    net = net.to(dtype)
    if not narrow_norms:
        for part in net.modules():
            part.to(f32) if isinstance(part, nn.BatchNorm2d) else None
    return net


def state(net: nn.Module, result: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    result.sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in net.parameters())]
    values = [result.detach(), *(one for one in gradients if one is not None)]
    scaled = [one.double() / one.double().abs().max() for one in values]
    return [*scaled, *(one.double() for one in net.buffers() if one.is_floating_point())]


@pytest.mark.parametrize("offset", [0.0, 200.0])
def test_a_step_is_eager_s(offset: float) -> None:
    net = prepared(Block(offset), f32).train()
    other, seen = copy.deepcopy(net), Seen()
    x = torch.randn(IMAGES, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, wanted = state(net, compiled(net, seen, verify=True)(x), x), state(other, other(y), y)
    for one, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    assert [action.code for action in seen.actions] == ["TL524"]
    assert "two numbers a channel" in seen.actions[0].reason


@pytest.mark.parametrize("narrow_norms", [True, False])
def test_a_narrow_step_is_that_without(narrow_norms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = prepared(Block(), bf16, narrow_norms).train()
    other, seen = copy.deepcopy(net), Seen()
    x = torch.randn(IMAGES, dtype=bf16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found = state(net, compiled(net, seen, verify=narrow_norms)(x), x)
    assert [action.code for action in seen.actions] == ["TL524"]
    monkeypatch.setattr(partition, "recompute_rows", recompute_rows)
    torch._dynamo.reset()
    wanted = state(other, compiled(other)(y), y)
    for one, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-2, atol=1e-2)


def saved(net: nn.Module, dtype: torch.dtype = bf16) -> tuple[int, list[str]]:
    """How many images a forward saves, and what was done."""
    seen = Seen()
    compiled(prepared(net, dtype).train(), seen)(torch.randn(IMAGES, dtype=dtype))
    return sum(value.shape == torch.Size(IMAGES) for value in seen.saved), [action.code for action in seen.actions]


def test_what_is_computed_again_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    count, codes = saved(nn.Sequential(convolution(), nn.BatchNorm2d(8), nn.ReLU(), convolution()))
    assert codes == ["TL524"]
    monkeypatch.setattr(partition, "recompute_rows", recompute_rows)
    torch._dynamo.reset()
    before, codes = saved(nn.Sequential(convolution(), nn.BatchNorm2d(8), nn.ReLU(), convolution()))
    assert codes == [] and count == before - 1


class Returned(nn.Module):
    """The activation is the caller's too, and there anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = convolution(), nn.BatchNorm2d(8), convolution()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = torch.relu(self.norm(self.first(x)))
        return made, self.second(made)


def summed() -> nn.Module:
    """Two images would be read in the place of one."""

    class Summed(Returned):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.second(torch.relu(self.norm(self.first(x)) + x)),)

    return Summed()


@pytest.mark.parametrize(
    "net",
    [
        Returned(),
        summed(),
        nn.Sequential(nn.BatchNorm2d(8), convolution()),  # its input is the caller's, but saved it is: see below
        nn.Sequential(convolution(), nn.BatchNorm2d(8, affine=False), nn.ReLU(), convolution()),
        nn.Sequential(convolution(), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), convolution()),
        nn.Sequential(convolution(), nn.GroupNorm(4, 8), nn.ReLU(), convolution()),
        nn.Sequential(convolution(), nn.BatchNorm2d(8)),  # nothing takes it
    ],
    ids=["returned", "summed", "of an argument", "no weight", "no running statistics", "groups", "last"],
)
def test_what_stays_as_it_is(net: nn.Module) -> None:
    assert saved(net)[1] == []


def test_bytes_of_a_training_step() -> None:
    """Of two convolutions with a norm between them: neither program moves an image for the activation alone."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
    ).to(bf16)
    x = torch.empty(64, 64, 56, 56, dtype=bf16).to(memory_format=torch.channels_last)
    step = aot.aot_compile(lambda x: net(x).float().square().mean(), (x,), target="tpu7x", backward=True)
    assert isinstance(step, TpuStep) and step.chip is chips.find("tpu7x")
    images = [one for one in step.saved if one.shape == tuple(x.shape) and one.memory == "own"]
    assert len(images) == 2  # what both convolutions gave


def test_a_joint_graph_before_and_after() -> None:
    """Images far from zero: statistics rounded to bfloat16 would be off by a tenth of the deviation."""
    torch.manual_seed(0)
    x = (torch.randn(2, 4, 8, 8) * 2 + 300).to(bf16)
    channels = [torch.rand(4, dtype=bf16) for _ in range(4)]

    def joint(x: torch.Tensor, tangents: torch.Tensor, *given: torch.Tensor) -> list[torch.Tensor]:
        image = x * 1
        normed, mean, rstd, *running = aten._native_batch_norm_legit_functional(image, *given, True, 0.1, 1e-5)
        gradient = tangents * torch.relu(normed)
        weight, *_, variance = given
        back = aten.native_batch_norm_backward(
            gradient, image, weight, given[2], variance, mean, rstd, True, 1e-5, [True, True, True]
        )
        return [torch.relu(normed).sum(), *running, *back]

    args = x, torch.randn(2, 4, 8, 8).to(bf16), *channels
    module = make_fx(joint, tracing_mode="fake")(*args)
    tangents = module.graph.find_nodes(op="placeholder")[1]
    tangents.target = "tangents_1"
    assert [action.code for action in recompute_norms(module.graph, 3)] == ["TL524"]
    module.graph.lint()
    again = [node for node in module.graph.nodes if node.meta.get("recompute")]
    normed = again[-1].args[0]
    assert again[-1].target is aten.relu.default and isinstance(normed, fx.Node) and normed.meta["val"].dtype is bf16
    text = print_graph(module.graph)
    assert "_native_batch_norm_legit_functional" in text and "bf16[2, 4, 8, 8], f32[4], f32[4]" in text
    values: dict[fx.Node, torch.Tensor] = {}

    class Kept(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            values[n] = super().run_node(n)
            return values[n]

    found = Kept(fx.GraphModule(module, module.graph)).run(*args)
    wanted = F.batch_norm(x.double(), None, None, *(one.double() for one in channels[:2]), training=True)
    torch.testing.assert_close(values[normed].double(), wanted, rtol=1e-2, atol=1e-2)
    for one, before in zip(found[3:], joint(*args)[3:], strict=True):
        scale = before.abs().max()
        assert one.dtype is before.dtype
        torch.testing.assert_close(one / scale, before / scale, rtol=0.2, atol=0.2)

"""A call leaves the memory of arguments and results to their owner, who may resize and free it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tpu_lowering
from tests.processes import forked

SIZES = (3, 1 << 10, 1 << 12, 1 << 16)  # below and above what is copied rather than imported


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)


def assert_free(tensor: torch.Tensor) -> None:
    """The tensor can be made larger, and its memory given back."""
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.detach().set_(tensor.untyped_storage()).resize_(tensor.untyped_storage().nbytes() // 4 + 100)
    torch.testing.assert_close(tensor.detach(), kept, rtol=0, atol=0)
    tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("device", ["", "cpu:0"])
@pytest.mark.parametrize("size", SIZES)
def test_arguments_and_results_are_their_owners(size: int, device: str) -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y.add_(1)
        z = x * 2
        return z, z.view(1, -1).t(), torch.ones(size), x + y

    run = compiled(function, device=device)
    x, y = torch.randn(size), torch.randn(size)
    for _ in range(3):  # the second call and later ones keep arrays of arguments
        results = run(x, y)
    for tensor in (*results[:1], *results[2:], x, y):
        assert_free(tensor)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_and_what_is_saved_are_their_owners(size: int) -> None:
    run = compiled(lambda x, w: (x * w).sin())
    x, w = torch.randn(size, requires_grad=True), torch.randn(size, requires_grad=True)
    for _ in range(3):
        x.grad = w.grad = None
        y = run(x, w)
        y.sum().backward()
    assert x.grad is not None and w.grad is not None
    for tensor in (y, x.grad, w.grad, x, w):
        assert_free(tensor)


def test_an_argument_whose_memory_was_freed_and_is_back_is_read_anew() -> None:
    """As FSDP does with parameters, between a forward and its backward too."""
    x, w = torch.randn(1 << 14), torch.ones(1 << 14, requires_grad=True)
    run = compiled(lambda x, w: (x * w).sin())
    for value in (1.0, 2.0, 3.0):
        nbytes = w.untyped_storage().nbytes()
        w.detach().fill_(value)
        y = run(x, w)
        w.untyped_storage().resize_(0)
        w.untyped_storage().resize_(nbytes)
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(w):
            w.fill_(value)
        w.grad = None
        y.sum().backward()
        torch.testing.assert_close(w.grad, x * (x * value).cos())


def test_out_of_a_larger_shape() -> None:
    y = compiled(lambda x: x * 2)(torch.ones(3))
    torch.add(torch.ones(8), 1, out=y.resize_(0))
    assert y.tolist() == [2.0] * 8


@tpu_lowering.kernel_op("storages::double_into", mutates_args=("out",))
def double_into(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return x * 2, x + 1


def test_operands_of_a_kernel_in_eager_torch() -> None:
    x, out = torch.randn(64), torch.zeros(64)
    result = double_into(x, out)
    for tensor in (x, out, result):
        assert_free(tensor)


FSDP = """
import os, sys
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

rank, world, store, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
torch.set_num_threads(1)
mesh = init_device_mesh("cpu", (world,))


def made():
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(16, 96), nn.GELU(), nn.Linear(96, 16), nn.LayerNorm(16))
    return nn.Sequential(block(), block(), nn.Linear(16, 4))


def train(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def sharded(compile):
    model = made()
    for part in model:
        if compile == "parts":
            part.compile(backend="helion_tpu")
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if compile == "whole":
        model.compile(backend="helion_tpu")
    return model


x = torch.randn(6, 16, generator=torch.Generator().manual_seed(rank))
wanted, got = train(sharded(""), x), train(sharded(how), x)
torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
print("trained", got)
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("how", ["parts", "whole"])
def test_fully_shard(how: str, tmp_path: Any) -> None:
    """FSDP2 over two processes on loopback: it frees parameters after each use, and gathers them again."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(FSDP))
    commands = [(str(script), str(rank), "2", str(tmp_path / "store"), how) for rank in range(2)]
    running = [forked.server().start(*command) for command in commands]
    for process in running:
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and "trained" in printed, errors[-3000:]

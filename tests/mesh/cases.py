"""What ranks do in tests: each function is a case, called on every rank with its rank and their count."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from tests.mesh import models, ranks


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)


def error(actual: Any, expected: Any) -> float:
    """The largest difference of tensors in nested values, relative to the largest element of each."""
    pairs = zip(*(torch.utils._pytree.tree_leaves(value) for value in (actual, expected)), strict=True)
    found = [0.0]
    for a, b in pairs:
        a, b = models.whole(a), models.whole(b)
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        a, b = (one.to(torch.complex128 if one.is_complex() else torch.float64) for one in (a.detach(), b.detach()))
        scale = b.abs().max().clamp_min(1e-3) if b.numel() else 1
        found.append(float(((a - b).abs() / scale).max()) if b.numel() else 0.0)
    return max(found)


# Collectives -----------------------------------------------------------------------------------------------
DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8)


def functional_collectives(rank: int, count: int) -> dict[str, float]:
    mesh = init_device_mesh("cpu", (count,))

    def every(x: torch.Tensor) -> Any:
        reduced = [functional.all_reduce(x, kind, mesh) for kind in ("sum", "max", "min", "product")]
        gathered = [functional.all_gather_tensor(x, dim, mesh) for dim in (0, 1, 2)]
        scattered = [functional.reduce_scatter_tensor(x, kind, dim, mesh) for kind in ("sum",) for dim in (0, 1)]
        return reduced, gathered, scattered, functional.all_to_all_single(x, None, None, mesh)

    found = {}
    for dtype in DTYPES:
        x = (torch.arange(4 * 8 * 3).reshape(4, 8, 3) % 7 + rank).to(dtype)
        found[str(dtype)] = error(compiled(every)(x), every(x))
    return found


def averages(rank: int, count: int) -> float:
    mesh = init_device_mesh("cpu", (count,))

    def every(x: torch.Tensor) -> Any:
        return functional.all_reduce(x, "avg", mesh), functional.reduce_scatter_tensor(x, "avg", 1, mesh)

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
    return error(compiled(every)(x), every(x))


def bits(rank: int, count: int) -> float:
    mesh = init_device_mesh("cpu", (count,))

    def every(x: torch.Tensor) -> Any:
        return [functional.all_reduce(x, kind, mesh) for kind in ("band", "bor", "bxor")]

    x = torch.randint(0, 1000, (5, 3), generator=torch.Generator().manual_seed(rank))
    return error(compiled(every)(x), every(x))


def coalesced(rank: int, count: int) -> float:
    mesh = init_device_mesh("cpu", (count,))

    def every(x: torch.Tensor) -> Any:
        many = [x, x[:, :4] * 2]
        gathered = functional.all_gather_into_tensor_coalesced(many, mesh)
        scattered = functional.reduce_scatter_tensor_coalesced(many, "sum", [0, 0], mesh)
        return functional.all_reduce_coalesced(many, "sum", mesh), gathered, scattered

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
    return error(compiled(every)(x), every(x))


def broadcasts(rank: int, count: int) -> float:
    mesh = init_device_mesh("cpu", (count,))

    def every(x: torch.Tensor) -> Any:
        return functional.broadcast(x, 1, mesh), functional.broadcast(x > 0, 0, mesh)

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
    x[0, 0] = -0.0
    actual, expected = compiled(every)(x), every(x)
    assert torch.equal(actual[0].view(torch.int32), expected[0].view(torch.int32))
    return error(actual, expected)


def in_place(rank: int, count: int) -> float:
    """``dist.*`` on tensors of the function's own, and on arguments."""

    def every(x: torch.Tensor, given: torch.Tensor) -> Any:
        x = x * 2
        dist.all_reduce(x)
        dist.all_reduce(given, op=dist.ReduceOp.MAX)
        gathered = [torch.empty_like(x) for _ in range(count)]
        dist.all_gather(gathered, x * given)
        joined = torch.empty(4 * count, 8)
        dist.all_gather_into_tensor(joined, x)
        part = torch.empty(4 // count, 8)
        dist.reduce_scatter_tensor(part, x)
        moved = torch.empty_like(x)
        dist.all_to_all_single(moved, given)
        return x, gathered, joined, part, moved

    x, given = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(rank))
    mine, theirs = given.clone(), given.clone()
    return error((compiled(every)(x, mine), mine), (every(x, theirs), theirs))


def empty_and_single(rank: int, count: int) -> float:
    """Tensors without elements or dimensions, and a group of one rank."""
    alone = [dist.new_group([one]) for one in range(count)][rank]

    def every(x: torch.Tensor, none: torch.Tensor) -> Any:
        return (
            functional.all_reduce(x, "sum", dist.group.WORLD),
            functional.all_gather_tensor(none, 0, dist.group.WORLD),
            functional.all_reduce(x, "sum", alone) * 2,
        )

    x, none = torch.tensor(1.5 + rank), torch.ones(0, 3)
    return error(compiled(every)(x, none), every(x, none))


def two_axes(rank: int, count: int) -> float:
    """Groups of a grid, one of its lines a group of both axes."""
    mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("data", "model"))

    def every(x: torch.Tensor) -> Any:
        lines = functional.all_reduce(x, "sum", (mesh, 0)), functional.all_gather_tensor(x, 1, (mesh, 1))
        return *lines, functional.all_reduce(x * lines[0], "sum", dist.group.WORLD)

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
    return error(compiled(every)(x), every(x))


def autograd_collectives(rank: int, count: int) -> float:
    """Collectives with gradients of their own."""

    def every(x: torch.Tensor) -> torch.Tensor:
        gathered = functional.all_gather_tensor_autograd(x, 0, dist.group.WORLD)
        scattered = functional.reduce_scatter_tensor_autograd(gathered.sin(), "sum", 0, dist.group.WORLD)
        return functional.all_to_all_single_autograd(scattered * x, None, None, dist.group.WORLD)

    x, y = (torch.randn(4, 8, generator=torch.Generator().manual_seed(rank)).requires_grad_() for _ in range(2))
    expected, actual = every(x), compiled(every)(y)
    (expected * expected).sum().backward()
    (actual * actual).sum().backward()
    return error((actual, y.grad), (expected, x.grad))


# Models -----------------------------------------------------------------------------------------------------
LAYERS = 2 if ranks.ALL else 1


def _against_one_process(
    spread: Callable[[nn.Module], nn.Module],
    rank: int,
    batch: int,
    mine: slice,
    dtype: torch.dtype = torch.float32,
    steps: int = 3,
    data_ranks: int = 1,
) -> dict[str, float]:
    """Losses, gradients and parameters of some steps, against eager in one process with the whole batch.

    Args:
        mine: the rows of the batch that this rank has.
        data_ranks: how many ranks' losses are averaged.
    """
    eager, model = models.decoder(dtype, LAYERS), spread(models.decoder(dtype, LAYERS))
    # AdamW divides by the root of a gradient's square: of one that is all but zero it shows rounding alone.
    adam = dtype == torch.float64
    make = (
        functools.partial(torch.optim.AdamW, lr=1e-2)
        if adam
        else functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    )
    optimizers = [make(one.parameters(), foreach=False) for one in (eager, model)]
    words, target = models.words(batch), models.words(batch, 4)
    compiled_model = torch.compile(model, backend="helion_tpu")
    found = {"loss": 0.0, "gradients": 0.0, "parameters": 0.0}
    for _ in range(steps):
        expected = models.loss_of(eager(words), target)
        actual = models.loss_of(compiled_model(words[mine]), target[mine])
        expected.backward()
        actual.backward()
        mean = actual.detach().clone()
        if data_ranks > 1:
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        found["loss"] = max(found["loss"], error(mean, expected))
        gradients = models.named_gradients(model)
        known = {name: one.grad for name, one in eager.named_parameters()}
        assert gradients.keys() == known.keys(), gradients.keys() ^ known.keys()
        for name, one in known.items():
            found["gradients"] = max(found["gradients"], error(gradients[name], one))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(eager.parameters(), model.parameters(), strict=True):
        found["parameters"] = max(found["parameters"], error(other, one))
    return found


def tensor_parallel(rank: int, count: int) -> dict[str, float]:
    mesh = init_device_mesh("cpu", (count,))
    return _against_one_process(lambda m: models.tensor_parallel(m, mesh), rank, 2, slice(None))


def tensor_parallel_float64(rank: int, count: int) -> dict[str, float]:
    mesh = init_device_mesh("cpu", (count,))
    return _against_one_process(lambda m: models.tensor_parallel(m, mesh), rank, 2, slice(None), torch.float64)


def sequence_parallel(rank: int, count: int) -> dict[str, float]:
    mesh = init_device_mesh("cpu", (count,))
    return _against_one_process(lambda m: models.sequence_parallel(m, mesh), rank, 2, slice(None))


def _rows(rank: int, count: int, each: int = 2) -> slice:
    return slice(rank * each, (rank + 1) * each)


def simple_fsdp(rank: int, count: int) -> dict[str, float]:
    mesh = init_device_mesh("cpu", (count,))
    spread = lambda m: models.simple_fsdp(m, mesh)  # noqa: E731
    return _against_one_process(spread, rank, 2 * count, _rows(rank, count), data_ranks=count)


def hybrid_fsdp(rank: int, count: int) -> dict[str, float]:
    """Whole replicas of parameters in parts."""
    mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=("replicas", "parts"))
    spread = lambda m: models.simple_fsdp(m, mesh, (Replicate(), Shard(0)))  # noqa: E731
    return _against_one_process(spread, rank, 2 * count, _rows(rank, count), data_ranks=count)


def fsdp2(rank: int, count: int) -> dict[str, float]:
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (count,))

    def spread(model: nn.Module) -> nn.Module:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return _against_one_process(spread, rank, 2 * count, _rows(rank, count), data_ranks=count)


def ddp(rank: int, count: int) -> dict[str, float]:
    spread = nn.parallel.DistributedDataParallel
    return _against_one_process(spread, rank, 2 * count, _rows(rank, count), data_ranks=count)


def fsdp_and_tensor_parallel(rank: int, count: int) -> dict[str, float]:
    """Parameters in parts along data ranks, and of matrices along model ranks too."""
    mesh = init_device_mesh("cpu", (count // 2, 2), mesh_dim_names=("data", "model"))
    place = mesh.get_local_rank("data")

    def spread(model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        models.tensor_parallel(model, mesh["model"])
        for layer in model.layers:
            fully_shard(layer, mesh=mesh["data"])
        return fully_shard(model, mesh=mesh["data"])

    return _against_one_process(spread, rank, count, _rows(place, count // 2), data_ranks=count // 2)


def vocabulary_parallel(rank: int, count: int) -> float:
    """Embedding and loss of a part of the words each."""
    mesh = init_device_mesh("cpu", (count,))

    def make() -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16))

    plan = {"0": RowwiseParallel(input_layouts=Replicate()), "1": ColwiseParallel(use_local_output=False)}
    eager, model = make(), parallelize_module(make(), mesh, plan)
    words, target = models.words(2), models.words(2, 4)
    expected = models.loss_of(eager(words), target)
    expected.backward()
    with loss_parallel():
        actual = compiled(lambda given: models.loss_of(model(given), target))(words)
        actual.backward()
    return error((actual, models.named_gradients(model)), (expected, models.named_gradients(eager)))


def experts(rank: int, count: int) -> float:
    """Each rank has one expert; words go to the rank of theirs and come back, in equal parts."""
    torch.manual_seed(1)
    weights = torch.randn(count, 8, 8)

    def layer(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        sent = functional.all_to_all_single_autograd(x, None, None, dist.group.WORLD)
        return functional.all_to_all_single_autograd((sent @ own).relu(), None, None, dist.group.WORLD)

    x, y = (torch.randn(2 * count, 8, generator=torch.Generator().manual_seed(rank)).requires_grad_() for _ in range(2))
    own = weights[rank].clone().requires_grad_()
    parts = x.unflatten(0, (count, 2))
    expected = torch.einsum("ebi,eij->ebj", parts, weights).relu().flatten(0, 1)
    actual = compiled(layer)(y, own)
    (expected**2).sum().backward()
    (actual**2).sum().backward()
    return error((actual, y.grad), (expected, x.grad))


def redistributed(rank: int, count: int) -> float:
    """Every change of placement between two of three kinds."""
    mesh = init_device_mesh("cpu", (count,))

    def every(x: torch.Tensor) -> Any:
        whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        parts = [whole.redistribute(mesh, [Shard(dim)]) for dim in (0, 1)]
        turned = parts[0].redistribute(mesh, [Shard(1)])
        return [one.to_local() * 2 for one in (*parts, turned, turned.redistribute(mesh, [Replicate()]))]

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    return error(compiled(every)(x), every(x))

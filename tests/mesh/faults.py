"""What ranks do that must not: each function is a case, called on every rank with its rank and their count.

A case gives the text of the error that the rank got, "" for none, and how many seconds it took.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from tpu_lowering.errors import TpuLoweringError
from tpu_lowering.runtime import peers


def said(function: Callable[[], Any]) -> tuple[str, float]:
    began = time.monotonic()
    try:
        function()
    except TpuLoweringError as error:
        return str(error), time.monotonic() - began
    except Exception as error:
        inner = getattr(error, "inner_exception", None)
        return str(inner) if isinstance(inner, TpuLoweringError) else repr(error), time.monotonic() - began
    return "", time.monotonic() - began


def summed(**options: Any) -> Callable[..., Any]:
    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x * 2, "sum", dist.group.WORLD)

    return torch.compile(function, backend="helion_tpu", fullgraph=True, dynamic=False, options=options)


def another_program(rank: int, count: int) -> tuple[str, float]:
    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x + (1 if rank == 1 else 2), "sum", dist.group.WORLD)

    return said(lambda: torch.compile(function, backend="helion_tpu")(torch.ones(4)))


def other_options(rank: int, count: int) -> tuple[str, float]:
    function = summed(poison=rank == 1)
    return said(lambda: function(torch.ones(4)))


def another_size(rank: int, count: int) -> tuple[str, float]:
    return said(lambda: summed()(torch.ones(4 + (rank == 1))))


def refused_on_one(rank: int, count: int) -> tuple[str, float]:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.ops.tests_faults.unknown(x) if rank == 1 else x
        return functional.all_reduce(y, "sum", dist.group.WORLD)

    torch.library.define("tests_faults::unknown", "(Tensor x) -> Tensor")
    torch.library.register_fake("tests_faults::unknown", lambda x: x.clone())
    return said(lambda: torch.compile(function, backend="helion_tpu")(torch.ones(4)))


def alone_without_collective(rank: int, count: int) -> tuple[str, float]:
    """Rank 1 compiles again, for another size; nothing in it needs the others."""
    function = torch.compile(lambda x: x.sin() * 2, backend="helion_tpu", dynamic=False)

    def run() -> None:
        function(torch.ones(4))
        if rank == 1:
            function(torch.ones(5))

    return said(run)


def alone_with_collective(rank: int, count: int) -> tuple[str, float]:
    """Rank 1 compiles again, for another size, while the others call what they have."""
    function = summed()
    function(torch.ones(4))
    return said(lambda: function(torch.ones(4 + (rank == 1))))


def other_order(rank: int, count: int) -> tuple[str, float]:
    """Two programs that all have, called in another order on rank 1."""
    function = summed()
    sizes = [torch.ones(4), torch.ones(5)]
    for x in sizes:
        function(x)
    return said(lambda: [function(x) for x in (sizes[::-1] if rank == 1 else sizes)])


def dies_before_a_call(rank: int, count: int) -> tuple[str, float]:
    function = summed()
    function(torch.ones(4))
    if rank == 1:
        os._exit(7)
    return said(lambda: function(torch.ones(4)))


def dies_before_a_program(rank: int, count: int) -> tuple[str, float]:
    function = summed()
    if rank == 1:
        torch.compile(lambda x: x + 1, backend="helion_tpu")(torch.ones(4))
        time.sleep(1)
        os._exit(7)
    return said(lambda: function(torch.ones(4)))


def never_comes(rank: int, count: int) -> tuple[str, float]:
    """Rank 1 lives, and does something else for longer than the group's timeout."""
    if rank == 1:
        time.sleep(float(os.environ["TESTS_GROUP_SECONDS"]) + 8)
        return "", 0.0
    return said(lambda: summed()(torch.ones(4)))


def irregular_group(rank: int, count: int) -> tuple[str, float]:
    group = dist.new_group([0, 1, 3])
    if rank == 2:
        return "", 0.0

    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x, "sum", group)

    return said(lambda: torch.compile(function, backend="helion_tpu")(torch.ones(4)))


def other_meshes(rank: int, count: int) -> tuple[str, float]:
    """Rank 0 waits for rank 1 in a program of two ranks, and rank 1 for rank 0 in one of four."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]

    def of_two(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x * 3, "sum", pairs[rank // 2])

    programs = [torch.compile(of_two, backend="helion_tpu", fullgraph=True), summed()]
    for program in programs:
        program(torch.ones(4))
    return said(lambda: programs[rank != 0](torch.ones(4)))


def uneven_shard(rank: int, count: int) -> tuple[str, float]:
    """Five rows on two ranks."""
    mesh = init_device_mesh("cpu", (count,))
    from torch.distributed.tensor import Shard

    x = distribute_tensor(torch.arange(10.0).view(5, 2), mesh, [Shard(0)])
    function = torch.compile(lambda x: x.redistribute(placements=[Replicate()]).to_local() * 2, backend="helion_tpu")
    return said(lambda: function(x))


def on_a_device(rank: int, count: int) -> tuple[str, float]:
    return said(lambda: summed(device="cpu")(torch.ones(4)))


def unequal_exchange(rank: int, count: int) -> tuple[str, float]:
    splits = [1, 3] if rank == 0 else [3, 1]

    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.all_to_all_single(x, splits, splits, dist.group.WORLD)

    return said(lambda: torch.compile(function, backend="helion_tpu")(torch.ones(4, 2)))


def dies_in_a_call(rank: int, count: int) -> tuple[str, float]:
    """Rank 1 ends while all compute and exchange."""

    def function(x: torch.Tensor) -> torch.Tensor:
        for _ in range(60):
            x = functional.all_reduce(x.sin(), "avg", dist.group.WORLD)
        return x

    compiled = torch.compile(function, backend="helion_tpu", fullgraph=True)
    compiled(torch.ones(1 << 16))
    if rank == 1:
        threading.Timer(0.3, os._exit, [7]).start()
    return said(lambda: [compiled(torch.ones(1 << 16)) for _ in range(500)])


def first_rank_dies(rank: int, count: int) -> tuple[str, float]:
    """The rank that holds torch's store ends."""
    function = summed()
    function(torch.ones(4))
    if rank == 0:
        os._exit(7)
    return said(lambda: function(torch.ones(4)))


def again_after_a_fault(rank: int, count: int) -> tuple[str, float]:
    """What was said once is said at every further call, at once."""
    function = summed()
    function(torch.ones(4))
    said(lambda: function(torch.ones(4 + (rank == 1))))
    return said(lambda: function(torch.ones(4)))


def started_again(rank: int, count: int) -> tuple[str, float]:
    """The group ends, and another one begins, at another port: after a functional collective torch keeps a group's
    store, with all that its ranks have said, for as long as the process lives."""

    def run() -> None:
        assert torch.equal(summed()(torch.ones(4)), torch.full((4,), 2.0 * count))
        port = torch.tensor(peers.free_port())
        dist.broadcast(port, 0)
        dist.destroy_process_group()
        os.environ["MASTER_PORT"] = str(port.item())
        dist.init_process_group("gloo")
        torch._dynamo.reset()
        assert torch.equal(summed()(torch.ones(4)), torch.full((4,), 2.0 * count))

    return said(run)

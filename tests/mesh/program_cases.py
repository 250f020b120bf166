"""What ranks do in tests, and what the programs that they run hold: see ``tests.mesh.cases``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import tpu_lowering
from tests.cases.case_kernels import elementwise
from tests.mesh import models
from tests.mesh.cases import error
from tpu_lowering import compat, kernel_op
from tpu_lowering.backend import helion_tpu

COUNTED = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


class _Sources:
    """Keeps the generated source of each program, by its kind."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def stage(self, name: str, stage: str, module: Any, seconds: float) -> None: ...

    def acted(self, name: str, stage: str, actions: Any) -> None: ...

    def compiled(self, program: Any, source: Any) -> None:
        assert program.name not in self.texts
        self.texts[program.name] = source.text


def sources_of(step: Callable[[], Any], model: nn.Module) -> dict[str, str]:
    """The generated source of each program that a training step of a model compiles."""
    sources = _Sources()
    model.compile(backend=functools.partial(helion_tpu, observers=[sources]), fullgraph=True)
    step()
    return sources.texts


def programs_of(step: Callable[[], Any], model: nn.Module) -> dict[str, dict[str, int]]:
    """The collectives of each program that a training step compiles, by the kind of the program."""
    found: dict[str, dict[str, int]] = {}
    for name, text in sources_of(step, model).items():
        kind = name.split("_")[0]
        assert kind not in found, "expected one program a direction"
        found[kind] = {one: text.count(f" = {one}(") for one in COUNTED if f" = {one}(" in text}
    return found


def counts(rank: int, count: int) -> dict[str, dict[str, dict[str, int]]]:
    mesh = init_device_mesh("cpu", (count,))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(self.norm(x)).relu())

    def step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
        return lambda: model(x).square().sum().backward()

    found = {}
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(Pair(), mesh, plan)
    found["tensor parallel"] = programs_of(step(model, torch.randn(4, 16)), model)
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "up": ColwiseParallel(input_layouts=Shard(0)),
        "down": RowwiseParallel(output_layouts=Shard(0)),
    }
    model = parallelize_module(Pair(), mesh, plan)
    found["sequence parallel"] = programs_of(step(model, torch.randn(4, 16)), model)
    model = models.simple_fsdp(Pair(), mesh)
    found["simple FSDP"] = programs_of(step(model, torch.randn(4, 16)), model)
    return found


@kernel_op("mesh::doubled_into", mutates_args=("out",))
def doubled_into(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x: Any, old: Any, out: Any) -> None:
        out[...] = x[...] * 2

    return elementwise(body, [x], [out])[0]


class Doubled(torch.autograd.Function):
    """The kernel in destination-passing style, forward and backward."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        doubled_into(x, out)
        return out

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(gradient)
        doubled_into(gradient.contiguous(), out)
        return out


class Kernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(Doubled.apply(self.up(x)).relu())


def kernels(rank: int, count: int) -> dict[str, Any]:
    """Kernels that write into allocations, inside of models that are spread: nothing is left of these."""

    def make() -> nn.Module:
        torch.manual_seed(4)
        return Kernels()

    mesh, x = init_device_mesh("cpu", (count,)), torch.randn(4 * count, 16, generator=torch.Generator().manual_seed(1))
    eager = make()
    eager.down(2 * eager.up(x).relu()).square().mean().backward()
    expected = {name: one.grad for name, one in eager.named_parameters()}
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    spread = {
        "tensor parallel": (parallelize_module(make(), mesh, plan), x),
        "simple FSDP": (models.simple_fsdp(make(), mesh), x[4 * rank : 4 * rank + 4]),
    }
    found: dict[str, Any] = {}
    for name, (model, mine) in spread.items():
        texts = sources_of(lambda m=model, x=mine: m(x).square().mean().backward(), model)
        assert sorted(text.split("_")[0] for text in texts) == ["backward", "forward"]
        for text in texts.values():
            assert "doubled_into(" in text and "empty" not in text.replace("undefined", ""), text
        gradients = models.named_gradients(model)
        found[name] = error(gradients, {name: expected[name] for name in gradients})
    return found


def edges(rank: int, count: int) -> dict[str, bool]:
    """Arguments are read where they lie; saved tensors stay where XLA put them."""
    from tpu_lowering.runtime import imported_arguments

    made: list[int] = []
    over = imported_arguments.Places.over

    def watched(self: Any, tensor: torch.Tensor) -> Any:
        array = over(self, tensor)
        made.append(array.unsafe_buffer_pointer() - tensor.data_ptr())
        return array

    imported_arguments.Places.over = watched  # type: ignore[method-assign]
    try:
        x, w = torch.randn(64, 64), torch.randn(64, 64)
        function = torch.compile(
            lambda x, w: functional.all_reduce(x @ w, "sum", dist.group.WORLD), backend="helion_tpu", fullgraph=True
        )
        for _ in range(3):
            function(x, w)
    finally:
        imported_arguments.Places.over = over  # type: ignore[method-assign]
    return {"arguments are where they lie": bool(made) and set(made) == {0}}


def dropout(rank: int, count: int) -> dict[str, bool]:
    """Data ranks, whose generators have other seeds, drop other elements; tensor-parallel ranks the same."""
    mesh = init_device_mesh("cpu", (count // 2, 2), mesh_dim_names=("data", "model"))
    torch.manual_seed(100 + mesh.get_local_rank("data"))

    def function(x: torch.Tensor) -> torch.Tensor:
        kept = nn.functional.dropout(x, 0.5)
        return kept + 0 * functional.all_reduce(kept, "sum", (mesh, 1))

    kept = torch.compile(function, backend="helion_tpu", fullgraph=True)(torch.ones(64, 64)) > 0
    every = [torch.empty_like(kept) for _ in range(count)]
    dist.all_gather(every, kept)
    lines = [every[at : at + 2] for at in range(0, count, 2)]
    return {
        "model ranks agree": all(torch.equal(*line) for line in lines),
        "data ranks differ": len(lines) < 2 or not torch.equal(lines[0][0], lines[1][0]),
        "half is kept": 0.4 < float(kept.float().mean()) < 0.6,
    }


def stages(rank: int, count: int) -> dict[str, float]:
    """A pipeline: the first half of the ranks and the second have other programs, and send as torch sends."""
    half = count // 2
    groups = [dist.new_group(list(range(half))), dist.new_group(list(range(half, count)))]
    first, x = rank < half, torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    own = groups[0 if first else 1]

    def one(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x.sin(), "sum", own) if half > 1 else x.sin() * 1

    def other(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x.cos(), "sum", own) - 1 if half > 1 else x.cos() - 1

    expected = (half * x.sin()).cos() * half - 1
    run = torch.compile(one if first else other, backend="helion_tpu", fullgraph=True)
    found = 0.0
    for _ in range(2):
        if first:
            dist.send(run(x), rank + half)
        else:
            received = torch.empty(4, 8)
            dist.recv(received, rank - half)
            found = error(run(received), expected)
    return {"difference": found}


def exchange_in_eager(rank: int, count: int) -> float:
    """Unequal parts, which no program of all ranks can have, in eager torch between two programs."""
    inputs = [1 + (rank + other) % 2 for other in range(count)]
    outputs = [1 + (rank + other) % 2 for other in range(count)]

    def function(x: torch.Tensor) -> torch.Tensor:
        return functional.all_to_all_single(x * 2, outputs, inputs, dist.group.WORLD).sin()

    x = torch.randn(sum(inputs), 3, generator=torch.Generator().manual_seed(rank))
    options = {"fallback": "eager"}
    return error(torch.compile(function, backend="helion_tpu", options=options)(x), function(x))


def verified(rank: int, count: int) -> float:
    """Every pass held against the interpreter, undefined memory poisoned, and the report."""
    mesh = init_device_mesh("cpu", (count,))

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        doubled_into(functional.all_reduce(x, "sum", mesh), out)
        return functional.all_gather_tensor(out, 1, mesh) + functional.all_reduce(out, "max", mesh).mean()

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
    total = x.clone()
    dist.all_reduce(total)
    expected = torch.cat([2 * total] * count, 1) + 2 * total.mean()
    options = {"verify": True, "poison": True}
    report = tpu_lowering.explain(function, x)
    assert (report.programs_after, report.allocations_removed) == (1, 1), str(report)
    return error(torch.compile(function, backend="helion_tpu", options=options)(x), expected)


def memory(rank: int, count: int) -> dict[str, float]:
    """What a rank holds of parameters in parts, in bytes of one layer's whole parameters."""
    width, layers = 256, 8
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    models.simple_fsdp(model, init_device_mesh("cpu", (count,)))
    x, temporary, saved = torch.randn(4, width), dict[str, int](), list[int]()
    direct = compat.direct_call

    def watched(compiled: Any, types: Any, device: Any = None) -> Any:
        temporary[f"program {len(temporary)}"] = compiled.memory_analysis().temp_size_in_bytes
        return direct(compiled, types, device)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        saved.append(local.nbytes)
        return tensor

    compat.direct_call = watched
    try:
        compiled = torch.compile(model, backend="helion_tpu", fullgraph=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = compiled(x).square().mean()
        loss.backward()
    finally:
        compat.direct_call = direct
    layer = 4 * width * width
    return {"largest saved": max(saved) / layer} | {name: size / layer for name, size in temporary.items()}


def dynamic_sizes(rank: int, count: int) -> float:
    """A function that is compiled again for each size, when it meets it."""
    mesh = init_device_mesh("cpu", (count,))

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        whole = functional.all_gather_tensor(x, 0, mesh)
        return functional.all_reduce((whole @ w).sin(), "sum", mesh) / x.shape[0]

    compiled = torch.compile(function, backend="helion_tpu", fullgraph=True, dynamic=True)
    generator, found = torch.Generator().manual_seed(rank), 0.0
    for size in (3, 5, 3, 8):
        x, w = torch.randn(size, 4, generator=generator), torch.randn(4, 2, generator=generator)
        found = max(found, error(compiled(x, w), function(x, w)))
    return found


class Spread(nn.Module):
    """Columns, then rows, of matrices that data ranks hold in parts too: DTensors on both axes of a mesh."""

    def __init__(self, up: torch.Tensor, down: torch.Tensor, mesh: Any) -> None:
        super().__init__()
        self.mesh = mesh
        self.up = nn.Parameter(distribute_tensor(up, mesh, [Shard(0), Shard(0)]))
        self.down = nn.Parameter(distribute_tensor(down, mesh, [Shard(0), Shard(1)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wholes = []
        for weight, kept in ((self.up, Shard(0)), (self.down, Shard(1))):
            gathered = weight.redistribute(placements=[Replicate(), kept])
            wholes.append(gathered.to_local(grad_placements=[Partial("avg"), kept]))
        part = nn.functional.linear(nn.functional.linear(x, wholes[0]).relu(), wholes[1])
        return DTensor.from_local(part, self.mesh["model"], [Partial()], run_check=False).full_tensor()


def sharded_on_both_axes(rank: int, count: int) -> float:
    """SimpleFSDP with tensor parallelism: gradients against one process with all rows."""
    mesh = init_device_mesh("cpu", (count // 2, 2), mesh_dim_names=("data", "model"))
    generator = torch.Generator().manual_seed(6)
    up, down = torch.randn(16, 8, generator=generator), torch.randn(8, 16, generator=generator)
    x = torch.randn(4 * (count // 2), 8, generator=generator)
    rows = slice(4 * mesh.get_local_rank("data"), 4 * mesh.get_local_rank("data") + 4)
    eager = [one.clone().requires_grad_() for one in (up, down)]
    nn.functional.linear(nn.functional.linear(x, eager[0]).relu(), eager[1]).square().mean().backward()
    model = Spread(up, down, mesh)
    torch.compile(model, backend="helion_tpu", fullgraph=True)(x[rows]).square().mean().backward()
    return error([model.up.grad, model.down.grad], [one.grad for one in eager])

"""Programs of several ranks, compiled for all devices of a topology, against the same by hand in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from jax import lax
from jax.sharding import PartitionSpec
from torch import nn
from torch.distributed._functional_collectives import all_gather_tensor, all_reduce
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.utils import parametrize

import tpu_lowering
from bench.mesh_programs import by_hand, training
from tpu_lowering import aot, errors
from tpu_lowering.ir import chips, collectives
from tpu_lowering.runtime.aot.collectives import Collective

WIDTH, HIDDEN, ROWS = 512, 2048, 256
SIZES = {"data": 4, "model": 4}
P = PartitionSpec


def sent(collectives: Sequence[Collective]) -> list[tuple[Any, ...]]:
    """What two programs are compared by, in an order of its own."""
    return sorted((one.kind, one.axes, one.ranks, one.operand_bytes, one.result_bytes) for one in collectives)


class Pair(nn.Module):
    """Two products: the first by columns, the second by rows."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH) if norm else nn.Identity()
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


def rows(count: int = ROWS) -> torch.Tensor:
    return torch.empty(count, WIDTH, dtype=torch.bfloat16)


def test_tensor_parallel_pair_reduces_once_as_by_hand() -> None:
    def local(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return lax.psum(jnp.maximum(x @ up, 0) @ down, "model")

    with tpu_lowering.fake_mesh(SIZES) as mesh:
        model = Pair().bfloat16()
        parallelize_module(model, mesh["model"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        ours = tpu_lowering.aot_compile(model, (rows(),), target="v5e:4x4", mesh=mesh)
    arguments = [((4 * ROWS, WIDTH), P("data")), ((WIDTH, HIDDEN), P(None, "model")), ((HIDDEN, WIDTH), P("model"))]
    theirs = by_hand(local, arguments, P("data"))
    assert sent(ours.collectives) == sent(theirs.collectives)
    assert sent(ours.collectives) == [("all-reduce", ("model",), 4, 2 * ROWS * WIDTH, 2 * ROWS * WIDTH)]
    assert (ours.argument_bytes, ours.output_bytes) == (theirs.argument_bytes, theirs.output_bytes)
    assert ours.argument_bytes == 2 * (ROWS * WIDTH + 2 * WIDTH * HIDDEN // 4)
    (one,) = ours.collectives
    assert (one.dimensions, one.links, one.times) == (("x",), 2, 1)
    assert "test_mesh.py" in one.op_name
    assert ours.sent_bytes == 2 * 2 * ROWS * WIDTH * 3 // 4
    assert ours.link_bound_seconds == pytest.approx(ours.sent_bytes / 2 / 5e10)
    assert str(ours.mesh) == "data 4 x model 4"


@pytest.mark.parametrize("fuse", ["tpu", "never"])
def test_sequence_parallel_gathers_and_scatters_once_as_by_hand(fuse: str) -> None:
    def local(x: jax.Array, scale: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        normed = wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
        whole = lax.all_gather(normed.astype(x.dtype) * scale, "model", axis=0, tiled=True)
        return lax.psum_scatter(jnp.maximum(whole @ up, 0) @ down, "model", scatter_dimension=0, tiled=True)

    with tpu_lowering.fake_mesh(SIZES) as mesh:
        model = Pair(norm=True).bfloat16()
        plan: dict[str, Any] = {
            "norm": SequenceParallel(sequence_dim=0),
            "up": ColwiseParallel(input_layouts=Shard(0)),
            "down": RowwiseParallel(output_layouts=Shard(0)),
        }
        parallelize_module(model, mesh["model"], plan)
        chip = chips.find("v5e:4x4")
        devices = aot.slice_of("v5e:4x4", chip, mesh)
        captured = aot.capture(model, (rows(ROWS // 4),), {}, chip, {"fuse": fuse}, (), devices)
        ours = aot.compile_captured(captured, chip, True, False)
    sharded = P(("data", "model"))
    arguments = [((4 * ROWS, WIDTH), sharded), ((WIDTH,), P()), ((WIDTH, HIDDEN), P(None, "model")),
                 ((HIDDEN, WIDTH), P("model"))]  # fmt: skip
    theirs = by_hand(local, arguments, sharded)
    assert sent(ours.collectives) == sent(theirs.collectives)
    kinds = [one.kind for one in ours.collectives]
    assert (kinds.count("all-gather"), kinds.count("reduce-scatter"), kinds.count("all-reduce")) == (1, 1, 0)
    kernels = [o for o in ours.entry_operations if o.opcode == "custom-call:tpu_custom_call"]
    assert len(kernels) == (1 if fuse == "tpu" else 0)
    if kernels:  # a kernel sees a device's rows, and nothing is gathered for it
        assert f"bf16[{ROWS // 4},{WIDTH}]" in ours.hlo.partition(f"%{kernels[0].name} = ")[2][:200]


class Gathered(nn.Module):
    """A weight, gathered from all ranks; the gradient goes to each rank's part."""

    def forward(self, weight: Any) -> torch.Tensor:
        whole = weight.redistribute(placements=[Replicate()])
        return whole.to_local(grad_placements=[Partial("sum")])


def test_sharded_parameters_are_gathered_and_their_gradients_scattered_as_by_hand() -> None:
    def step(x: jax.Array, up: jax.Array, down: jax.Array) -> Any:
        def loss(up: jax.Array, down: jax.Array) -> jax.Array:
            whole = [lax.all_gather(weight, "data", axis=0, tiled=True) for weight in (up, down)]
            return jnp.sum(jnp.maximum(x @ whole[0].T, 0) @ whole[1].T, dtype=jnp.float32)

        return jax.grad(loss, argnums=(0, 1))(up, down)

    with tpu_lowering.fake_mesh({"data": 16}) as mesh:
        model = Pair().bfloat16()
        for layer in (model.up, model.down):
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
            parametrize.register_parametrization(layer, "weight", Gathered(), unsafe=True)
        captured = training(lambda x: model(x).float().sum(), (rows(),), "v5e:4x4", mesh)
        forward, backward = (aot.compile_captured(one, chips.find("v5e:4x4"), True, False) for one in captured)
    line = forward.mesh
    data = P("data")
    theirs = by_hand(
        step, [((16 * ROWS, WIDTH), data), ((HIDDEN, WIDTH), data), ((WIDTH, HIDDEN), data)], (data, data), mesh=line
    )
    weight = 2 * WIDTH * HIDDEN
    gathered = ("all-gather", ("data",), 16, weight // 16, weight)
    scattered = [one for one in sent(theirs.collectives) if one[0] != "all-gather"]
    assert sent(forward.collectives) == [gathered, gathered]
    assert [one for one in sent(theirs.collectives) if one[0] == "all-gather"] == [gathered, gathered]
    asked = [node.target for node in captured[1].program.module.graph.nodes]
    assert asked.count(collectives.reduce_scatter) == 2
    # The compiler makes one sum of two that are this small, of which each device keeps its part.
    assert [one for one in sent(backward.collectives) if one[0] != "all-gather"] == scattered
    assert scattered == [("all-reduce", ("data",), 16, 2 * weight, 2 * weight)]


def test_axes_without_names_are_found_from_groups() -> None:
    with tpu_lowering.fake_mesh({"a": 2, "b": 2, "c": 4}) as mesh:

        def summed(x: torch.Tensor) -> torch.Tensor:
            return all_gather_tensor(all_reduce(x, "sum", (mesh, 1)), 0, (mesh, 2))

        named = tpu_lowering.aot_compile(summed, (rows(),), target="v5e:4x4", mesh=mesh)
        unnamed = tpu_lowering.aot_compile(summed, (rows(),), target="v5e:4x4")
    assert [(one.kind, one.axes) for one in named.collectives] == [("all-reduce", ("b",)), ("all-gather", ("c",))]
    assert [one.axes for one in unnamed.collectives] == [("axis_4",), ("axis_1",)]
    assert (str(named.mesh), str(unnamed.mesh)) == ("a 2 x b 2 x c 4", "axis_8 2 x axis_4 2 x axis_1 4")


@pytest.mark.sweep
@pytest.mark.parametrize("target", ["v6e:4x4", "tpu7x:2x2x2", "v5p:2x2x4", "v4:2x2x2"])
def test_every_chip_compiles_for_its_slices(target: str) -> None:
    with tpu_lowering.fake_mesh(SIZES) as mesh:
        made = tpu_lowering.aot_compile(lambda x: all_reduce(x, "sum", (mesh, 0)), (rows(),), target=target, mesh=mesh)
    (one,) = made.collectives
    assert (one.kind, one.axes, one.operand_bytes) == ("all-reduce", ("data",), 2 * ROWS * WIDTH)
    assert (made.link_bound_seconds is None) is (made.chip.name == "v4")
    assert len(made.places) == 16


def test_a_program_is_saved_with_what_its_devices_send(tmp_path: Any) -> None:
    with tpu_lowering.fake_mesh(SIZES) as mesh:
        made = tpu_lowering.aot_compile(
            lambda x: all_reduce(x, "sum", (mesh, 0)), (rows(),), target="v5e:4x4", mesh=mesh
        )
    made.save(tmp_path / "program.tpu")
    loaded = tpu_lowering.load(tmp_path / "program.tpu")
    assert (loaded.collectives, loaded.mesh, loaded.places) == (made.collectives, made.mesh, made.places)


def refusal(code: str, compile_: Any) -> str:
    with pytest.raises(Exception) as caught:  # Dynamo wraps what its backend raises
        compile_()
    error = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(error, errors.TpuLoweringError)
    assert error.code == code
    return str(error)


def test_refusals() -> None:
    with tpu_lowering.fake_mesh(SIZES) as mesh:

        def summed(x: torch.Tensor) -> torch.Tensor:
            return all_reduce(x, "sum", (mesh, 0))

        def compiled(target: str, **given: Any) -> Any:
            return lambda: tpu_lowering.aot_compile(summed, (rows(),), target=target, **given)

        assert refusal("TL721", compiled("v5e", mesh=mesh)) == (
            "[TL721] mesh on one device: 'v5e'\n"
            "  why  expected a topology for a mesh of data 4 x model 4, got one device\n"
            '  fix  write target="v5e:4x4"'
        )
        assert refusal("TL721", compiled("tpu7x")).splitlines()[1:] == [
            "  why  expected a topology for collectives among 4 ranks, got one device",
            '  fix  write target="tpu7x:2x2x2"',
        ]
        assert refusal("TL722", compiled("tpu7x:4x4x4", mesh=mesh)) == (
            "[TL722] topology with another number of devices than the mesh: 'tpu7x:4x4x4'\n"
            "  why  expected a topology of 16 devices, one for each rank, got 128 (2 a chip)\n"
            "  fix  name a topology of 8 chips, or make a mesh of 128 ranks"
        )
        assert refusal("TL112", compiled("v5e:4x4", mesh=4)).splitlines()[1] == (
            "  why  expected a DeviceMesh of torch.distributed, got int"
        )
        assert "a mesh of all 16 ranks in order" in refusal("TL112", compiled("v5e:4x4", mesh=mesh["model"]))
        assert refusal("TL726", lambda: tpu_lowering.explain(summed, rows())) == (
            "[TL726] fake ranks cannot run: explain\n"
            "  why  expected a target, as fake ranks run nothing, got none\n"
            '  fix  explain(model, x, target="v5e:4x4", mesh=mesh)'
        )

        def nested() -> None:
            with tpu_lowering.fake_mesh(SIZES):
                pass

        assert "expected a process without a group of ranks" in refusal("TL724", nested)
    with tpu_lowering.fake_mesh({"data": 12}):  # groups of 8 do not fill 12 ranks
        part: Any = torch.distributed.new_group(list(range(8)))
        text = refusal(
            "TL723",
            lambda: tpu_lowering.aot_compile(lambda x: all_reduce(x, "sum", part), (rows(),), target="v5e:2x6"),
        )
        assert "expected axes that make a grid of the 12 devices of v5e:2x6, got axis_1 8 on 12 devices" in text
    assert "names of axes" in refusal("TL112", lambda: tpu_lowering.fake_mesh({}).__enter__())
    with tpu_lowering.fake_mesh({"data": 9}) as nine:
        text = refusal(
            "TL725",
            lambda: tpu_lowering.aot_compile(
                lambda x: all_reduce(x, "sum", (nine, 0)), (rows(),), target="v5e:3x3", mesh=nine
            ),
        )
        assert "expected a topology that libtpu has" in text


def test_the_report_says_what_is_sent_and_from_where() -> None:
    with tpu_lowering.fake_mesh(SIZES) as mesh:
        model = Pair().bfloat16()
        parallelize_module(model, mesh["model"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        report = tpu_lowering.explain(model, rows(), target="v5e:4x4", mesh=mesh)
    assert report.chip is not None
    view = report.chip.mesh
    assert view is not None
    (one,) = view.collectives
    assert (one.kind, one.axes, one.count, one.runs) == ("all-reduce", "model", 1, 1)
    assert one.where.startswith("test_mesh.py:")
    assert one.sent_bytes == view.sent_bytes == 2 * 2 * ROWS * WIDTH * 3 // 4
    text = str(report)
    assert "Mesh: data 4 x model 4 on v5e:4x4" in text
    assert "published" in text
    assert report.to_dict()["chip"]["mesh"]["collectives"][0]["kind"] == "all-reduce"


@pytest.mark.sweep
@pytest.mark.parametrize(("target", "count"), [("v5e:16x16", 256), ("v5p:4x4x4", 64), ("tpu7x:4x4x4", 128)])
def test_whole_pods_compile(target: str, count: int) -> None:
    assert chips.find(target).slice_devices == count
    with tpu_lowering.fake_mesh({"data": count // 8, "model": 8}) as mesh:
        made = tpu_lowering.aot_compile(lambda x: all_reduce(x, "sum", (mesh, 0)), (rows(),), target=target, mesh=mesh)
    (one,) = made.collectives
    assert (one.axes, one.ranks, len(made.places)) == (("data",), count // 8, count)


def test_a_program_without_collectives_is_for_one_device_whatever_the_ranks() -> None:
    with tpu_lowering.fake_mesh({"data": 2}) as mesh:
        alone = tpu_lowering.aot_compile(torch.relu, (rows(),), target="v5e:2x4")
        assert (str(alone.mesh), alone.collectives, alone.places) == ("one device", (), ())
        text = refusal("TL722", lambda: tpu_lowering.aot_compile(torch.relu, (rows(),), target="v5e:2x4", mesh=mesh))
        assert "expected a topology of 2 devices, one for each rank, got 8" in text

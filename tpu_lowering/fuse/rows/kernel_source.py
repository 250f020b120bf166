"""A plan as a kernel's source: its members over one block, and the ``pallas_call`` around them.

::

    def softmax_rows(x):
        with jax.named_scope("model.py:8"):
            amax = aten.amax(x, [1], True, out=f32[128, 1])
            ...
        return (div,)


    def softmax_rows_kernel(x_ref, div_ref):
        (div,) = softmax_rows(x_ref[...])
        div_ref[...] = div


    def softmax_rows_launch(x, *, interpret):
        return pl.pallas_call(
            softmax_rows_kernel,
            grid=(64,),
            in_specs=[pl.BlockSpec((128, 8192), lambda i: (i, 0))],
            ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.codegen import source
from tpu_lowering.fuse.rows.block_graph import BlockGraph, distinct, held_as, run_along
from tpu_lowering.fuse.rows.held import held_bytes
from tpu_lowering.fuse.rows.tiles import Tiling
from tpu_lowering.fuse.space.row_plans import MemoryAxes, RowOperand, RowPlan
from tpu_lowering.fuse.space.spaces import Dim, dims_of
from tpu_lowering.fuse.xla.vmem_limits import asked, kernel_bytes
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.programs import Output, Program, Signature
from tpu_lowering.ir.types import TensorType, element_type

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class KernelSource:
    """A kernel's source and what it is called with.

    Attributes:
        name: of the function over a block; ``<name>_launch`` is the whole.
        text: the source.
        operands: types of the operands: one size for each dimension of the space, 1 where a value does not run.
        results: types of the results, likewise; a bool is held as int8.
    """

    name: str
    text: str
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]


LIBRARIES = (
    "import jax",
    "import jax.numpy as jnp",
    "import torch",
    "from jax.experimental import pallas as pl",
    "from jax.experimental.pallas import tpu as pltpu",
)


def write(plan: RowPlan, tiling: Tiling, name: str, chip: Chip) -> KernelSource | None:
    """The source of a plan's kernel; None if a sum over the grid would be visited again after another block.

    Args:
        plan: what it computes.
        tiling: its blocks.
        name: of the function.
        chip: what it is for.
    """
    order, sizes, grid = plan.region.space.order(), plan.region.space.sizes, [dim for dim, _ in tiling.grid]
    for node in plan.outputs:
        kept = [dim in dims_of(plan.region.accesses[node]) for dim in grid]
        if plan.region.is_sum(node) and kept != sorted(kept, reverse=True):
            return None
    body = BlockGraph(plan, tiling)
    results = [
        held_type(node, run_along(plan.region.accesses[node], order, sizes.__getitem__), plan.region.is_sum(node))
        for node in plan.outputs
    ]
    return KernelText(plan, tiling, body, name, results, chip).written()


def plain_form(plan: RowPlan, name: str) -> tuple[Program, source.Source]:
    """A plan as a program of its own, without a kernel: the same operands and results as its kernels have."""
    sizes = plan.region.space.sizes
    body = BlockGraph(plan, Tiling(tuple(sizes.items()), ()), in_kernel=False)
    count = len(plan.operands())
    results = tuple(Output.of(node.meta["val"]) for node in body.graph.output_node().args[0])  # type: ignore[union-attr]
    program = Program(tuple(range(count)), Signature(results, len(results), ()), name=name, module=body.module)
    return program, source.generate(program)


def held_type(node: fx.Node, shape: Sequence[int], sums: bool = False) -> TensorType:
    """The type of an operand or a result in memory; a sum over the grid of narrow floats is kept in float32."""
    dtype = node.meta["val"].dtype
    dtype = torch.float32 if sums and dtype.is_floating_point else held_as(dtype)
    element = element_type(dtype)
    assert element is not None
    return TensorType(element, tuple(shape))


GRID_NAMES = "ijklmn"


class KernelText:
    """The parts of the source that say where blocks lie."""

    def __init__(
        self, plan: RowPlan, tiling: Tiling, body: BlockGraph, name: str, results: Sequence[TensorType], chip: Chip
    ) -> None:
        self.plan, self.tiling, self.body_graph, self.name = plan, tiling, body, name
        self.results, self.chip = results, chip
        self.order = plan.region.space.order()
        self.index = {dim: GRID_NAMES[at] for at, (dim, _) in enumerate(tiling.grid)}
        self.operand_names = distinct([operand.node.name for operand in plan.operands()])
        self.result_names = distinct([node.name for node in plan.outputs], self.operand_names)

    def written(self) -> KernelSource:
        """The whole source. On a TPU the kernel asks for what its blocks and values need of VMEM."""
        count = sum(node.op == "placeholder" for node in self.body_graph.graph.nodes)
        program = Program(tuple(range(count)), Signature((), 0, ()), name=self.name, module=self.body_graph.module)
        function = source.generate(program, libraries=LIBRARIES).text
        head = [function, "", *self.body(), "", ""]
        space = self.plan.region.space
        operands = tuple(held_type(o.node, [size for _, size in o.in_memory(space)]) for o in self.plan.operands())

        def text(vmem_bytes: int | None) -> str:
            return "\n".join([*head, *self.launch(vmem_bytes)]) + "\n"

        largest = text(kernel_bytes(self.chip))
        if not self.chip.is_tpu:
            return KernelSource(self.name, largest, operands, tuple(self.results))
        limit = asked(held_bytes(self.name, largest, operands, self.chip), self.chip)
        return KernelSource(self.name, text(limit), operands, tuple(self.results))

    def body(self) -> list[str]:
        """The function over references."""
        refs = ", ".join(f"{name}_ref" for name in (*self.operand_names, *self.result_names))
        lines = [f"def {self.name}_kernel({refs}):"]
        summed = {dim for node in self.plan.outputs for dim in self.first_steps(node)}
        used = [dim for dim in self.index if dim in summed or dim in self.body_graph.masks]
        lines += [f"    {self.index[dim]} = pl.program_id({list(self.index).index(dim)})" for dim in used]
        for dim in self.body_graph.masks:
            shape, position = self.body_graph.shape(((dim,),)), self.order.index(dim)
            places = f"jax.lax.broadcasted_iota(jnp.int32, {shape}, {position})"
            size = self.plan.region.space.sizes[dim]
            lines.append(f"    inside_{position} = {self.index[dim]} * {self.tiling.block(dim)} + {places} < {size}")
        given = [f"{name}_ref[...]" for name in self.operand_names]
        given += [f"inside_{self.order.index(dim)}" for dim in self.body_graph.masks]
        lines.append(f"    ({', '.join(self.result_names)},) = {self.name}({', '.join(given)})")
        for node, name in zip(self.plan.outputs, self.result_names, strict=True):
            first = self.first_steps(node)
            if not first:
                lines.append(f"    {name}_ref[...] = {name}")
                continue
            condition = " & ".join(f"({self.index[dim]} == 0)" for dim in first)
            lines += [
                "",
                f"    @pl.when({condition})",
                f"    def start_{name}():",
                f"        {name}_ref[...] = jnp.zeros_like({name}_ref)",
                "",
                f"    {name}_ref[...] += {name}",
            ]
        return lines

    def first_steps(self, node: fx.Node) -> list[Dim]:
        """The grid's dimensions that a sum runs over; empty for any other result."""
        if not self.plan.region.is_sum(node):
            return []
        return [dim for dim in self.index if dim not in dims_of(self.plan.region.accesses[node])]

    def launch(self, vmem_bytes: int | None) -> list[str]:
        """The function over arrays, whose kernel asks for so much of VMEM; None for nothing."""
        operands = [operand.in_memory(self.plan.region.space) for operand in self.plan.operands()]
        factors = [bool(operand.axes) for operand in self.plan.operands()]
        outputs = [
            RowOperand(n, self.plan.region.accesses[n]).in_memory(self.plan.region.space) for n in self.plan.outputs
        ]
        summed = {dim for node in self.plan.outputs for dim in self.first_steps(node)}
        semantics = tuple("arbitrary" if dim in summed else "parallel" for dim in self.index)
        shapes = [f"jax.ShapeDtypeStruct({r.shape}, jnp.{r.dtype})" for r in self.results]
        return [
            f"def {self.name}_launch({', '.join(self.operand_names)}, *, interpret):",
            "    return pl.pallas_call(",
            f"        {self.name}_kernel,",
            f"        grid={tuple(steps for _, steps in self.tiling.grid)},",
            "        in_specs=[",
            *self._specs(operands, self.operand_names, factors),
            "        ],",
            "        out_specs=[",
            *self._specs(outputs, self.result_names, [False] * len(outputs)),
            "        ],",
            f"        out_shape=[{', '.join(shapes)}],",
            f"        compiler_params=pltpu.CompilerParams(dimension_semantics={semantics}, "
            f"vmem_limit_bytes={vmem_bytes}),",
            "        interpret=interpret,",
            f'        name="{self.name}",',
            f"    )({', '.join(self.operand_names)})",
        ]

    def _specs(self, values: Sequence[MemoryAxes], names: Sequence[str], factors: Sequence[bool]) -> list[str]:
        """One line for each block spec. A factor of a product whose block never moves lies in VMEM once."""
        arguments = ", ".join(self.index.values())
        head = f"lambda {arguments}" if arguments else "lambda"
        lines: list[str] = []
        for axes, name, is_factor in zip(values, names, factors, strict=True):
            places = ["0" if dim is None else self.index.get(dim, "0") for dim, _ in axes]
            block = tuple(size if dim is None else self.tiling.block(dim) for dim, size in axes)
            once = ", pipeline_mode=pl.Buffered(1)" if is_factor and set(places) == {"0"} else ""
            lines.append(f"            pl.BlockSpec({block}, {head}: ({', '.join(places)}){once}),  # {name}")
        return lines

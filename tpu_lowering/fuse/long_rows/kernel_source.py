"""The kernel of one pass over long rows: the blocks of a row are the last dimensions of its grid.

::

    def softmax_long_rows(x, inside_1, amax_before, sum_before):
        with jax.named_scope("model.py:8"):
            where = aten.where(inside_1, x, full, out=f32[8, 262144])
            amax = aten.amax(where, [1], True, out=f32[8, 1])
            maximum = aten.maximum(amax_before, amax, out=f32[8, 1])
            ...
        return (maximum, add,)


    def softmax_long_rows_kernel(x_ref, amax_ref, sum_ref):
        j = pl.program_id(1)
        places_1 = j * 262144 + jax.lax.broadcasted_iota(jnp.int32, (1, 262144), 1)
        inside_1 = places_1 < 4000000

        @pl.when(j == 0)
        def start():
            amax_ref[...] = jnp.full_like(amax_ref, float("-inf"))
            sum_ref[...] = jnp.full_like(sum_ref, 0)

        (amax, sum,) = softmax_long_rows(x_ref[...], inside_1, amax_ref[...], sum_ref[...])
        amax_ref[...] = amax
        sum_ref[...] = sum
"""

from __future__ import annotations

import math

from torch import fx

from tpu_lowering.fuse.long_rows.block_graph import RunningBody, identity, kept_as
from tpu_lowering.fuse.long_rows.passes import MERGES, BlockPass
from tpu_lowering.fuse.rows.block_graph import run_along
from tpu_lowering.fuse.rows.kernel_source import KernelSource, KernelText
from tpu_lowering.fuse.rows.tiles import Tiling
from tpu_lowering.fuse.space.spaces import Dim
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.types import TensorType, element_type


def write_pass(plan: BlockPass, tiling: Tiling, name: str, chip: Chip) -> KernelSource:
    """The source of a pass.

    Args:
        plan: what it computes. Its results are reductions so far, floats in float32.
        tiling: its blocks; the grid runs over the dimensions of a row last.
        name: of the function.
        chip: what it is for.
    """
    order, sizes = plan.region.space.order(), plan.region.space.sizes
    results: list[TensorType] = []
    for node in plan.outputs:
        element = element_type(kept_as(node.meta["val"].dtype))
        assert element is not None
        results.append(TensorType(element, run_along(plan.region.accesses[node], order, sizes.__getitem__)))
    return _LongKernel(plan, tiling, RunningBody(plan, tiling), name, results, chip).written()


class _LongKernel(KernelText):
    plan: BlockPass
    body_graph: RunningBody

    def first_steps(self, node: fx.Node) -> list[Dim]:
        return self._steps()

    def _steps(self) -> list[Dim]:
        """The grid's dimensions that run over the blocks of a row, outermost first."""
        return [dim for dim in self.index if dim in self.plan.region.rows]

    def body(self) -> list[str]:
        """The function over references."""
        refs = ", ".join(f"{name}_ref" for name in (*self.operand_names, *self.result_names))
        lines = [f"def {self.name}_kernel({refs}):"]
        lines += [f"    {self.index[dim]} = pl.program_id({list(self.index).index(dim)})" for dim in self._steps()]
        lines += self._positions()
        if self.body_graph.counted:
            lines += self._counts()
        starts = [f"{name}_ref[...] = jnp.full_like({name}_ref, {_start(node)})" for node, name in self._results()]
        steps = [f"{self.index[dim]} == 0" for dim in self._steps()]
        condition = steps[0] if len(steps) == 1 else " & ".join(f"({step})" for step in steps)
        if condition:
            lines += ["", f"    @pl.when({condition})", "    def start():", *(f"        {line}" for line in starts), ""]
        else:
            lines += [f"    {line}" for line in starts]
        given = [f"{name}_ref[...]" for name in self.operand_names]
        given += [f"inside_{self.order.index(dim)}" for dim in self.body_graph.masks]
        given += [f"places_{self.order.index(dim)}" for dim in self.body_graph.placed]
        given += ["seen", "count"] if self.body_graph.counted else []
        given += [f"{name}_ref[...]" for name in self.result_names]
        lines.append(f"    ({', '.join(self.result_names)},) = {self.name}({', '.join(given)})")
        return lines + [f"    {name}_ref[...] = {name}" for name in self.result_names]

    def _results(self) -> list[tuple[fx.Node, str]]:
        return list(zip(self.plan.outputs, self.result_names, strict=True))

    def _positions(self) -> list[str]:
        """Where the elements of a block lie in a row, and which of them lie in the array."""
        lines: list[str] = []
        masks, placed = self.body_graph.masks, self.body_graph.placed
        for dim in [dim for dim in self.order if dim in (*masks, *placed)]:
            shape, position = self.body_graph.shape(((dim,),)), self.order.index(dim)
            places = f"jax.lax.broadcasted_iota(jnp.int32, {shape}, {position})"
            start = f"{self.index[dim]} * {self.tiling.block(dim)} + " if dim in self.index else ""
            lines.append(f"    places_{position} = {start}{places}")
            if dim in masks:
                lines.append(f"    inside_{position} = places_{position} < {self.plan.region.space.sizes[dim]}")
        return lines

    def _counts(self) -> list[str]:
        """How many elements of a row come before a block, and how many there are with it."""
        sizes, steps = self.plan.region.space.sizes, self._steps()
        whole = math.prod(sizes[dim] for dim in self.plan.region.rows if dim not in steps)
        inside = [f"jnp.minimum({self.tiling.block(d)}, {sizes[d]} - {self._first(d)})" for d in steps]
        before: list[str] = []
        for at, dim in enumerate(steps):
            inner = whole * math.prod(sizes[d] for d in steps[at + 1 :])
            before.append(" * ".join([self._first(dim), *([str(inner)] if inner > 1 else []), *inside[:at]]))
        block = " * ".join([*([str(whole)] if whole > 1 or not inside else []), *inside])
        ones = (1,) * len(self.order)
        return [
            f"    elements = {' + '.join(before) or '0'}",
            f"    seen = jnp.full({ones}, elements, jnp.int32).astype(jnp.float32)",
            f"    count = jnp.full({ones}, elements + {block}, jnp.int32).astype(jnp.float32)",
        ]

    def _first(self, dim: Dim) -> str:
        """The place of a block's first element."""
        return f"{self.index[dim]} * {self.tiling.block(dim)}"


def _start(node: fx.Node) -> str:
    """What a reduction has before any block, as source."""
    value = identity(MERGES[node.target], kept_as(node.meta["val"].dtype))
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)

"""The reference interpreter: a graph run node by node in eager torch, undefined memory poisoned.

It is the oracle of ``Options(verify=True)`` and of the tests: slow, simple, and independent of lowering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir import arrays, graphs, random
from tpu_lowering.ir.operators import ALLOCATIONS

aten = compat.aten


def interpret(module: fx.GraphModule, arguments: Sequence[Any]) -> list[torch.Tensor]:
    """Runs a graph.

    Args:
        module: a graph in any stage from specialising on.
        arguments: one value a placeholder.

    Returns:
        The values of the graph's output.
    """
    with torch.no_grad():
        return list(_Interpreter(module).run(*arguments))


class _Interpreter(fx.Interpreter):
    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in ALLOCATIONS:
            return self._poisoned(self.node)
        result = super().call_function(target, args, kwargs)
        return _poisoned_outside_groups(result, *args, **kwargs) if target is aten._grouped_mm.default else result

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    @staticmethod
    def _poisoned(node: fx.Node) -> torch.Tensor:
        value = arrays.poisoned(graphs.type_of(node))
        result = torch.empty_strided(value.shape, node.meta["val"].stride(), dtype=value.dtype)
        return result.copy_(value)


def _poisoned_outside_groups(
    result: torch.Tensor, left: torch.Tensor, right: torch.Tensor, offs: torch.Tensor | None = None, *_: Any, **__: Any
) -> torch.Tensor:
    """What ``_grouped_mm`` gives, with NaN where eager leaves memory as it was: in rows, or columns, of no group."""
    if offs is None or result.dim() == 3:
        return result
    grouped = 0 if left.dim() == 2 else 1
    at = torch.arange(result.shape[grouped])
    starts = torch.cat((offs.new_zeros(1), offs[:-1]))
    held = ((starts[:, None] <= at) & (at < offs[:, None])).any(0)
    return result.index_fill(grouped, (~held).nonzero()[:, 0], torch.nan)


def random_arguments(graph: fx.Graph, seed: int) -> list[Any]:
    """Arguments for a graph: normal floats, small integers, drawn from ``seed``; what eager torch is to draw by its own
    operator; other values as recorded."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any, drawn: Any) -> Any:
        if isinstance(drawn, random.Drawn):
            named = {} if drawn.dtype is None else {"dtype": drawn.dtype}
            return random.run(drawn.overload, drawn.args, named, generator)
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype.is_floating_point or value.dtype.is_complex:
            return torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.dtype)
        return torch.randint(0, 2, value.shape, generator=generator).to(value.dtype)

    return [draw(node.meta["val"], node.meta.get("drawn")) for node in graph.nodes if node.op == "placeholder"]


SCALED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types whose values are compared relative to the largest: torch has no division for floats of 8 bits."""

NARROW: dict[torch.dtype, tuple[float, float]] = {torch.float16: (1e-3, 2**-11), torch.bfloat16: (1.6e-2, 2**-8)}
"""By type, the tolerances of values of which a pass may round the terms: torch's relative one, and half a unit in the
last place of the largest value."""


def differing(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> int | None:
    """Index of the first value that differs between two runs of graphs that should be equal, or None.

    Equal means equal shape and dtype, NaN where the other has NaN, and otherwise within the rounding that
    reordering a reduction may cause: ``torch.testing.assert_close``'s tolerances for the dtype, of values divided by
    the largest finite one where that is above 1; of narrow types ``NARROW``. A sum of large terms that cancel is off by
    their rounding, and a kernel rounds terms to a narrow type that eager holds in float32, or the other way round.
    """
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.dtype in SCALED and a.dtype == b.dtype:
            scale = a.abs().masked_fill(~a.isfinite(), 0).amax().clamp_min(1) if a.numel() else 1
            a, b = a / scale, b / scale
        rtol, atol = NARROW.get(a.dtype, (None, None))
        try:
            torch.testing.assert_close(b, a, rtol=rtol, atol=atol, equal_nan=True, check_stride=False)
        except AssertionError:
            return index
    return None

"""Operators that call a Helion kernel on memory of their own; see ``bridge.fresh_operators``.

::

    tpu_lowering::helion_exp_into_fresh_out(Tensor[] tensors, *, SymInt[] size_0, SymInt[]? stride_0,
                                            ScalarType dtype_0, Device device_0) -> Tensor
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from tpu_lowering import compat
from tpu_lowering.bridge import fresh_operators
from tpu_lowering.ir import arguments


@dataclasses.dataclass(frozen=True, eq=False)
class HelionCall:
    """A call of a Helion kernel, as Dynamo's higher-order operator describes it.

    Attributes:
        index: the kernel's number in Helion's table.
        constants: arguments that are no tensors.
        tensors: names of the tensor arguments, in order.
        spec: Helion's description of the results.
        mutated: names of the arguments that the kernel writes, in order.
        fresh: those of them that it is given fresh memory for.
    """

    index: int
    constants: Mapping[str, Any]
    tensors: tuple[str, ...]
    spec: Mapping[str, Any]
    mutated: tuple[str, ...]
    fresh: tuple[str, ...]

    @property
    def results(self) -> int:
        """How many tensors the kernel itself returns."""
        return sum(leaf["type"] == "tensor" for leaf in self.spec["leaf_specs"])

    def key(self) -> Any:
        """What tells the operators of two calls apart."""
        given = (self.index, self.constants, self.tensors, self.spec, self.mutated, self.fresh)
        return ("helion", arguments.key(given))


def fresh_helion_operator(call: HelionCall) -> compat.OpOverload:
    """An operator of the tensors that are not fresh: the kernel's results, then the new values of ``mutated``.

    Values that are not fresh are copies, as they are in the functional form of the call.
    """
    kernel = compat.helion_kernel(call.index)
    made = ", ".join(fresh_operators.described_memory(index) for index in range(len(call.fresh)))
    count = call.results + len(call.mutated)
    returned = "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"

    def run(tensors: Any, **described: Any) -> Any:
        _, functional = compat.helion_operators()
        fresh = {name: fresh_operators.allocate(described, index) for index, name in enumerate(call.fresh)}
        given = iter(tensors)
        values: dict[str, torch.Tensor] = {n: fresh[n] if n in fresh else next(given) for n in call.tensors}
        own, copies = functional(
            kernel_idx=call.index,
            constant_args=dict(call.constants),
            tensor_args=values,
            output_spec=dict(call.spec),
            tensors_to_clone=[name for name in call.mutated if name not in fresh],
        )
        results = (*own, *(fresh[name] if name in fresh else copies[name] for name in call.mutated))
        return results[0] if len(results) == 1 else results

    name = f"helion_{kernel.name}_fresh_{'_'.join(call.fresh)}"
    return fresh_operators.define(call.key(), name, f"(Tensor[] tensors, *, {made}) -> {returned}", (), lambda _: run)

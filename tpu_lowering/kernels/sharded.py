"""A kernel in a program that XLA partitions: each device runs it on its part of the operands.

XLA would run a kernel whole on every device, or refuse it. Under ``jax.shard_map`` the kernel has the shapes of one
device's parts, for which it is traced anew; there is no communication inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from tpu_lowering import errors
from tpu_lowering.ir import shardings
from tpu_lowering.ir.kernels import Access, Execution, Kernel
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import sharding_rules
from tpu_lowering.kernels.jax_function import JaxKernel
from tpu_lowering.options import Axes
from tpu_lowering.session import Cache


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShardedKernel(Kernel):
    """A kernel that runs on the parts of its operands.

    Attributes:
        whole: the kernel for whole operands, which runs where there is no mesh: in the reference interpreter.
        part: the kernel for the parts of one device.
        given: how each operand lies.
        lies: how each result lies.
    """

    whole: JaxKernel
    part: JaxKernel
    given: tuple[Axes, ...]
    lies: tuple[Axes, ...]

    @property
    def is_split(self) -> bool:
        """Whether devices have different parts."""
        return any(each for axes in self.given for each in axes)

    def measure(self) -> tuple[Access, ...]:
        return self.part.access

    def calls(self) -> list[Any]:
        return self.part.calls()

    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        if not shardings.is_partitioned():
            return tuple(self.whole.form(how)(*operands))
        given = [at for at, value in enumerate(operands) if value is not None]

        def on_each(*parts: jax.Array) -> tuple[jax.Array, ...]:
            by_place = dict(zip(given, parts, strict=True))
            return tuple(self.part.form(how)(*(by_place.get(at) for at in range(len(operands)))))

        specs = tuple(shardings.spec(self.given[at]) for at in given)
        results = tuple(map(shardings.spec, self.lies))
        run = jax.shard_map(on_each, in_specs=specs, out_specs=results, check_vma=False)
        return run(*(value for value in operands if value is not None))

    @property
    def _for_tpu(self) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda *operands: self.trace(operands, "mosaic")


_kernels: Cache[Any, ShardedKernel] = Cache(
    "kernels.sharded", 256, "a kernel compares by identity; one holds two traced kernels, of 0.1 MiB each"
)


def shard(kernel: Kernel, known: Sequence[Axes | None], mesh: Mesh, where: str) -> ShardedKernel:
    """A kernel that runs on parts, as its rule and what is known of its operands say; the same object for equal ones.

    Args:
        kernel: for whole operands.
        known: how each operand lies; None where that is not known.
        mesh: of the program.
        where: the user's source line of the call.

    Raises:
        TpuLoweringError: TL712 for a kernel without a rule, TL715 for a rule that does not fit it; what tracing it for
            the parts raises.
    """
    made_of = kernel.made_of if isinstance(kernel, JaxKernel) else None
    rule = made_of.found.sharding if made_of is not None else None
    if made_of is None or rule is None or not isinstance(kernel, JaxKernel):
        raise errors.refuse(
            "TL712",
            kernel.name,
            "expected a rule that says which dimensions may be split, because XLA would run the whole kernel on every "
            "device, got none",
            "give it one: kernel_op(..., sharding='i j -> i j') or register_kernel(..., sharding='i j -> i j')"
            if made_of is not None
            else "write it as a kernel_op with one: kernel_op(..., sharding='i j -> i j')",
            where,
        )
    types = [operand.type for operand in kernel.operands]
    why = rule.what_does_not_fit(types, kernel.results)
    if why is not None:
        remedy = "write a term for each operand and each result, with a name for each dimension"
        raise errors.refuse("TL715", f"sharding of {kernel.name}", why, remedy, where)
    split = rule.split(types, known, mesh)
    given = tuple(sharding_rules.axes_of(term, split) for term in rule.operands)
    lies = tuple(sharding_rules.axes_of(term, split) for term in rule.results)
    results = _parts(kernel.results, lies, mesh)
    part = made_of.of_types(_parts(types, given, mesh), results, kernel.chip)

    def make() -> ShardedKernel:
        return ShardedKernel(
            kernel.name, kernel.operands, kernel.results, kernel.where, kernel.chip, kernel, part, given, lies,
            is_current=lambda: kernel.is_current() and part.is_current(),
        )  # fmt: skip

    return _kernels.find((kernel, part, given, lies), make)


def _parts(types: Sequence[TensorType], lie: Sequence[Axes], mesh: Mesh) -> list[TensorType]:
    """What one device has of values."""
    found: list[TensorType] = []
    for type_, axes in zip(types, lie, strict=True):
        sizes = [size // mesh.size(each) for size, each in zip(type_.shape, axes, strict=True)]
        found.append(TensorType(type_.element, tuple(sizes)))
    return found

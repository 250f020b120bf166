"""A generated row kernel as a ``Kernel``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax

from tpu_lowering.codegen import load
from tpu_lowering.fuse.rows.kernel_source import KernelSource
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import Access, Execution, Kernel, Operand
from tpu_lowering.kernels import jaxprs
from tpu_lowering.session import kept

READ_ONLY = Access(True, False, False, "an operand of a generated kernel")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowKernel(Kernel):
    """A kernel made of a region of the graph.

    Attributes:
        text: its source; runs on its own.
    """

    generated: ClassVar[bool] = True

    text: str

    def measure(self) -> tuple[Access, ...]:
        return (READ_ONLY,) * len(self.operands)

    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        launch = functools.partial(self._launch, interpret=how != "mosaic")
        with jaxprs.kernel_scope([slot.type for slot in self.operands], self.chip):
            return tuple(jaxprs.launched(launch, [value for value in operands if value is not None], how))

    @functools.cached_property
    def _launch(self) -> Callable[..., Any]:
        return load.define(self.name, self.text)[f"{self.name}_launch"]


@kept(256, "generated source is compiled by Python and traced once: 0.1 MiB each; kernels compare by identity")
def row_kernel(written: KernelSource, where: str, chip: Chip) -> RowKernel:
    """The kernel of a source; the same object for equal ones."""
    names = [f"operand_{at}" for at in range(len(written.operands))]
    operands = tuple(Operand(name, type_) for name, type_ in zip(names, written.operands, strict=True))
    return RowKernel(written.name, operands, written.results, where, chip, written.text)

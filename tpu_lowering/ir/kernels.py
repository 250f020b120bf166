"""Kernels as values: what a kernel takes, what it gives back, and what it does to each operand.

A kernel call in the graph is one node, ``kernel_call(kernel, operands)``, whatever form it had in the
user's code. An operand slot holds a tensor, or ``None`` where the kernel makes a fresh buffer of its own.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
import torch

from tpu_lowering import compat, errors
from tpu_lowering.ir import arrays, mosaic
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.types import TensorType

Execution = Literal["mosaic", "vectorized", "interpret", "tpu_interpret"]
"""How Pallas kernels run: as Mosaic kernels, for a TPU; as plain JAX, all steps of a grid dimension at once where that
is the same; in Pallas's interpreter, step by step; or in JAX's TPU interpreter, which finds races."""


@dataclasses.dataclass(frozen=True)
class Access:
    """What a kernel does to one operand.

    Attributes:
        reads: the old contents can influence a value that the kernel computes.
        writes: the kernel gives the operand a new value.
        covers: every element is provably overwritten before anything reads it.
        evidence: one sentence on where these facts come from, for reports.
    """

    reads: bool
    writes: bool
    covers: bool
    evidence: str

    def __post_init__(self) -> None:
        if self.covers and (self.reads or not self.writes):
            raise ValueError(f"expected a covering operand to be written and not read, got {self}")


@dataclasses.dataclass(frozen=True)
class Operand:
    """One tensor operand of a kernel.

    Attributes:
        name: the argument's name in the user's kernel.
        type: element type and shape.
        result: index of the result that is this operand's new value, or None for a read-only operand.
    """

    name: str
    type: TensorType
    result: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Kernel(abc.ABC):
    """A kernel, specialised to its operands' types and its static arguments.

    Kernels compare by identity; adapters return the same object for the same specialisation.

    Attributes:
        name: the kernel's name in the user's code.
        operands: the tensor operands, in the order of the kernel-call node's operands.
        results: types of the results. A result tied to an operand is that operand's new value.
        where: the source line the kernel was defined on, or "".
        chip: what it was traced for.
        is_current: whether what its function read when it was traced is still so.
        generated: whether a pass made it; the user's kernels are not.
    """

    generated: ClassVar[bool] = False

    name: str
    operands: tuple[Operand, ...]
    results: tuple[TensorType, ...]
    where: str
    chip: Chip
    is_current: Callable[[], bool] = dataclasses.field(default=lambda: True, kw_only=True)

    def __post_init__(self) -> None:
        tied = [operand for operand in self.operands if operand.result is not None]
        if len({operand.result for operand in tied}) != len(tied):
            raise ValueError(f"expected each result of {self.name} to belong to one operand, got {tied}")
        for operand in tied:
            assert operand.result is not None
            if self.results[operand.result] != operand.type:
                raise errors.refuse(
                    "TL202",
                    f"argument '{operand.name}' of {self.name}",
                    f"expected a new value of type {operand.type}, got {self.results[operand.result]}",
                    "return a value of the argument's own shape and dtype",
                    self.where,
                )

    @functools.cached_property
    def access(self) -> tuple[Access, ...]:
        """The measured effect on each operand. A read-only operand is read, never written."""
        return self.measure()

    @abc.abstractmethod
    def measure(self) -> tuple[Access, ...]:
        """Measures ``access``; called once."""

    @abc.abstractmethod
    def trace(self, operands: Sequence[jax.Array | None], how: Execution) -> tuple[jax.Array, ...]:
        """The kernel as JAX operations on its operands; ``None`` asks for a fresh buffer in that slot.

        Only operands with a result may be ``None``. Traceable under ``jax.jit``.
        """

    def calls(self) -> list[Any]:
        """The ``pallas_call`` equations of the kernel, as they are traced without fresh buffers."""
        return []

    def form(self, how: Execution) -> Any:
        """What generated code calls: ``trace`` under one ``jax.jit``, so that equal calls are traced once. An operand
        that is ``None`` becomes a ``kernels.jaxprs.Fresh`` in ``trace``."""
        if how not in self._forms:
            self._forms.setdefault(how, self._jitted(self._for_tpu if how == "mosaic" else self._on_cpu(how)))
        return self._forms[how]

    @functools.cached_property
    def _forms(self) -> dict[Execution, Any]:
        return {}

    def _on_cpu(self, how: Execution) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda *operands: self.trace(operands, how)

    @property
    def _for_tpu(self) -> Callable[..., tuple[jax.Array, ...]]:
        def lowered_in_32_bits(*operands: jax.Array | None) -> tuple[jax.Array, ...]:
            given = [index for index, value in enumerate(operands) if value is not None]

            def function(*values: jax.Array) -> tuple[jax.Array, ...]:
                by_index = dict(zip(given, values, strict=True))
                return self.trace([by_index.get(index) for index in range(len(operands))], "mosaic")

            return mosaic.in_32_bits(function, *(value for value in operands if value is not None))

        return lowered_in_32_bits

    def _jitted(self, run: Callable[..., tuple[jax.Array, ...]]) -> Any:
        run.__name__ = self.name
        return jax.jit(run)

    def __repr__(self) -> str:
        """The name as Python would write it: torch.fx compiles the text of a graph."""
        return self.name.replace("::", ".")

    def tied(self) -> tuple[int, ...]:
        """Indices of the operands that the kernel gives a new value."""
        return tuple(index for index, operand in enumerate(self.operands) if operand.result is not None)


def kernel_call(kernel: Kernel, operands: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor, ...]:
    """The graph's one kernel-call node: target of ``call_function`` with ``args=(kernel, operands)``.

    Running it (the reference interpreter does) passes a poisoned buffer, not ``None``, to the kernel's
    unchanged form, so that a fresh buffer which the kernel does read shows in the result.

    Returns:
        The kernel's results, new tensors in all cases.
    """
    given = [
        arrays.poisoned(slot.type) if value is None else value
        for slot, value in zip(kernel.operands, operands, strict=True)
    ]
    if any(arrays.is_fake(value) for value in (*given, torch.empty(0))):  # new tensors are fake under a mode
        device = next((v.device for v in operands if isinstance(v, torch.Tensor)), torch.device("cpu"))
        return tuple(torch.empty(t.shape, dtype=t.element.torch, device=device) for t in kernel.results)
    with compat.enable_x64(True):
        results = kernel.form("interpret")(*(arrays.to_jax(value) for value in given))
        return tuple(map(arrays.to_torch, results))

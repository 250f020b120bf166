"""Programs for rounded sizes, called with tensors of true sizes: arguments are padded, results cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from tpu_lowering.ir import arrays
from tpu_lowering.ir.programs import Output
from tpu_lowering.ir.types import TensorType
from tpu_lowering.runtime import calling_convention
from tpu_lowering.runtime.base import RunnableProgram


@dataclasses.dataclass(frozen=True)
class PaddedLayout:
    """Where the elements of a tensor lie in the padded one.

    Attributes:
        shape: true sizes of its dimensions.
        factors: true sizes of the factors of its dimensions, in order; see ``analyse.padding.layouts``.
        rounded: their rounded sizes.
        counts: how many factors make up each dimension.
    """

    shape: tuple[int, ...]
    factors: tuple[int, ...]
    rounded: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def is_padded(self) -> bool:
        return self.factors != self.rounded

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Sizes of the padded tensor's dimensions."""
        ends = [sum(self.counts[: at + 1]) for at in range(len(self.counts))]
        return tuple(math.prod(self.rounded[end - count : end]) for end, count in zip(ends, self.counts, strict=True))

    def pad(self, tensor: torch.Tensor, fill: Any) -> torch.Tensor:
        """A padded copy, row-major, with ``fill`` in the elements that the tensor does not have."""
        padded = tensor.new_full(self.rounded, fill)
        padded[tuple(slice(size) for size in self.factors)] = tensor.detach().reshape(self.factors)
        return padded.reshape(self.padded_shape)

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """The valid elements of a padded tensor, in the true shape."""
        tensor = tensor.reshape(self.rounded)
        return tensor[tuple(slice(size) for size in self.factors)].reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Result:
    """A result of true size.

    Attributes:
        place: where it lies in the program's; None for a result that is no tensor.
        stride: eager's strides.
        constant: the result, if it is no tensor.
        alias: the result as one that lies in the memory of an argument, or of another result.
    """

    place: PaddedLayout | None
    stride: tuple[int, ...] = ()
    constant: Any = None
    alias: Output | None = None

    def of(self, computed: Any) -> Any:
        """The result, from what the program gave."""
        if self.place is None:
            return self.constant
        if not self.place.is_padded and computed.stride() == self.stride:
            return computed
        return calling_convention.strided_copy(self.place.cut(computed), self.stride)


@dataclasses.dataclass(frozen=True, eq=False)
class PaddedProgram:
    """A program for rounded sizes and one set of true ones. Calling it is thread-safe.

    Attributes:
        program: the program; several of these share it.
        places: for each argument that is a tensor, where it lies in the padded one; None for other arguments.
        given: for each argument that is no tensor, what the program is given for it.
        numbers: the true numbers that follow the arguments.
        results: the results.
        mutated: positions of arguments that the program writes back to.
        poison: whether padding is NaN (the largest integer for integers), to show that it is never used.
    """

    program: RunnableProgram
    places: tuple[PaddedLayout | None, ...]
    given: tuple[Any, ...]
    numbers: tuple[torch.Tensor, ...]
    results: tuple[Result, ...]
    mutated: tuple[int, ...]
    poison: bool

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Runs the program on arguments of true sizes; results are of true sizes, with eager's strides."""
        padded = self.padded(arguments)
        computed = self.program([*padded, *self.numbers])
        for position in self.mutated:
            place = self.places[position]
            if place is not None and place.is_padded:
                with torch.no_grad():
                    arguments[position].copy_(place.cut(padded[position]))
        found = [None if r.alias else r.of(value) for r, value in zip(self.results, computed, strict=True)]
        calling_convention.place_all([result.alias for result in self.results], arguments, found)
        return found

    def padded(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments in rounded sizes."""
        return [
            given if place is None else place.pad(argument, self._fill(argument)) if place.is_padded else argument
            for argument, place, given in zip(arguments, self.places, self.given, strict=True)
        ]

    def _fill(self, tensor: torch.Tensor) -> Any:
        return arrays.poison_value(TensorType.of(tensor)) if self.poison else 0

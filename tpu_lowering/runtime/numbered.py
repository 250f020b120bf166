"""Programs that are told numbers when they are called: one program for every number that no shape needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tpu_lowering.runtime.base import RunnableProgram


@dataclasses.dataclass(frozen=True, eq=False)
class NumberedProgram:
    """A program, called with the captured graph's arguments. Calling it is thread-safe.

    Attributes:
        program: takes the arguments, then the numbers.
        positions: of the arguments that are numbers.
        evaluate: from these, the numbers that the program is told, then results that are numbers.
        dtypes: of the former.
        results: positions of the latter among the results.
    """

    program: RunnableProgram
    positions: tuple[int, ...]
    evaluate: Callable[..., tuple[Any, ...]]
    dtypes: tuple[torch.dtype, ...]
    results: tuple[int, ...]

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        values = self.evaluate(*(arguments[position] for position in self.positions))
        told = [torch.tensor(value, dtype=dtype) for value, dtype in zip(values, self.dtypes, strict=False)]
        results = self.program([*arguments, *told])
        for position, value in zip(self.results, values[len(told) :], strict=True):
            results[position] = value
        return results

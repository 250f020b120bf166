"""What a benchmark or a test needs to know about one kernel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import helion
import torch

Inputs = tuple[torch.Tensor | float, ...]


@dataclass(frozen=True)
class Tolerance:
    """Largest difference allowed: `abs(actual - expected) <= absolute + relative * abs(expected)`."""

    relative: float
    absolute: float

    def __post_init__(self) -> None:
        if self.relative < 0 or self.absolute < 0:
            raise ValueError(f"expected tolerances of at least 0, got {self.relative} and {self.absolute}")


@dataclass(frozen=True)
class KernelCase:
    """One kernel, the model that calls it, and the plain PyTorch it must agree with.

    `kernel` writes every element of its argument `out` and returns nothing. `model` allocates `out`, calls
    `kernel` and returns `out`; it takes what `reference` takes. `example(small)` makes those inputs from a
    fixed seed: a few grid steps in every direction when `small`, the published shapes otherwise.
    `tolerance` has one row for each dtype the kernel is meant for.
    """

    name: str
    kernel: helion.Kernel
    model: Callable[..., torch.Tensor]
    reference: Callable[..., torch.Tensor]
    example: Callable[[bool], Inputs]
    tolerance: Mapping[torch.dtype, Tolerance]

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"expected a name that is an identifier, got {self.name!r}")
        if not self.tolerance:
            raise ValueError(f"{self.name}: expected a tolerance for at least one dtype, got none")


def in_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same inputs with every floating-point tensor converted to `dtype`."""
    return tuple(
        value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in inputs
    )

"""How exact products of float32 are: on a TPU, JAX's own default rounds their factors to bfloat16.

A row of the table multiplies exactly, whatever it multiplies for: to permute rows, to average, to resize. The products
that a user writes, and their gradients, are as exact as torch is told:

=========================================  ================================================
``torch.get_float32_matmul_precision()``   products of float32
"highest", the default                     exact
"high"                                     of three parts of bfloat16 each
"medium"                                   of factors rounded to bfloat16
=========================================  ================================================

Convolutions follow ``torch.backends.mkldnn.conv.fp32_precision``, which has "tf32" for "high" and "bf16" for "medium".
What is multiplied in a kernel is the kernel's own business. Narrow floats are multiplied as they are.

What counts is what torch is told when a program is compiled; it is written into the program, and so into all that a
program is known by. Dynamo compiles again when matrices go from "highest" to another level or back, and only then.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import torch

Level = Literal["highest", "high", "medium"]
Multiplies = Literal["", "matrices", "convolution"]

IN_JAX: dict[Level, str] = {"highest": "highest", "high": "high", "medium": "bfloat16"}
OF_CONVOLUTIONS: dict[str, Level] = {"tf32": "high", "bf16": "medium"}
NARROW = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Precision:
    """How exact the products of float32 are that a user writes."""

    matrices: Level = "highest"
    convolution: Level = "highest"

    @classmethod
    def of_torch(cls) -> Precision:
        """What torch is told now."""
        flags = getattr(torch.backends.mkldnn, "conv", None)  # which older releases lack
        told = getattr(flags, "fp32_precision", "none")
        return cls(torch.get_float32_matmul_precision(), OF_CONVOLUTIONS.get(told, "highest"))  # type: ignore[arg-type]

    def of(self, multiplies: Multiplies) -> Level:
        return {"": "highest", "matrices": self.matrices, "convolution": self.convolution}[multiplies]  # type: ignore[return-value]


def exact(rule: Callable[..., Any], multiplies: Multiplies = "") -> Callable[..., Any]:
    """A rule of the table whose products are exact, or as exact as its further keyword ``precision`` says.

    Args:
        rule: the rule.
        multiplies: what its products are, if they are the user's; "" if they are its own.
    """

    @functools.wraps(rule)
    def computed(*args: Any, precision: Level = "highest", **kwargs: Any) -> Any:
        if multiplies and any(str(getattr(value, "dtype", "")) in NARROW for value in args):
            return rule(*args, **kwargs)
        with jax.default_matmul_precision(IN_JAX[precision]):
            return rule(*args, **kwargs)

    return computed

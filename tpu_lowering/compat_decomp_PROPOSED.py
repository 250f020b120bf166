"""Private imports of torch that the decompositions need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._decomp as _decomp

OpOverload = torch._ops.OpOverload


def core_aten_decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Torch's decompositions to the core ATen operator set, as a fresh dict.

    Why: there is no public name; ``torch.export.default_decompositions`` gives an opaque table that also
    holds entries for composite operators, meant for ``run_decompositions`` only.
    """
    return dict(_decomp.core_aten_decompositions())


def registered_decompositions(overloads: list[OpOverload]) -> dict[OpOverload, Callable[..., Any]]:
    """Torch's decompositions of the given overloads, of those outside the core set too.

    Why: there is no public name for decompositions that ``core_aten_decompositions`` leaves out.
    """
    return dict(_decomp.get_decompositions(overloads))

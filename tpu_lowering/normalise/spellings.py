"""Operators that are others under another name, by the others.

=====================================  =====================================================================
``aten.rand.generator(generator=None)``  ``aten.rand``: torch's own generator, as without the argument
``prims.div``, ...                       what eager runs for a primitive of torch's, ``impl_aten``
=====================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tpu_lowering import compat

aten = compat.aten

Function = Callable[..., Any]

GENERATORS: tuple[tuple[Any, str, str], ...] = (
    (aten.rand, "generator", "default"),
    (aten.randn, "generator", "default"),
    (aten.randint, "generator", "default"),
    (aten.randint, "low_generator", "low"),
    (aten.randperm, "generator", "default"),
    (aten.rand_like, "generator", "default"),
    (aten.randn_like, "generator", "default"),
    (aten.randint_like, "generator", "default"),
    (aten.randint_like, "low_generator_dtype", "low_dtype"),
)


def _without_generator(overload: compat.OpOverload) -> Function:
    def run(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return overload(*args, **kwargs) if generator is None else NotImplemented

    return run


def spellings(has_row: Callable[[compat.OpOverload], bool]) -> dict[compat.OpOverload, Function]:
    """Decompositions of such operators; a primitive that has a row keeps it."""
    found = {
        getattr(packet, name): _without_generator(getattr(packet, plain))
        for packet, name, plain in GENERATORS
        if name in packet.overloads()
    }
    for overload, function in compat.primitives().items():
        schema = compat.schema(overload)
        is_functional = not schema.is_mutable and all(result.alias_info is None for result in schema.returns)
        if is_functional and not has_row(overload):
            found[overload] = function
    return found

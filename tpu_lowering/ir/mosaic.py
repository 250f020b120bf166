"""Kernel calls that keep the mode they were traced under when they are lowered for a TPU.

Programs are lowered with JAX's x64 mode on, because they may hold 64-bit values; kernels are traced with it off.
Mosaic's lowering rules trace JAX functions of their own, late, under the mode of the program: a ``jnp.sign`` in a
kernel then becomes arithmetic on 64 bits, which Mosaic refuses. So a kernel call is an operation of its own, whose
lowering turns the mode off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
from jax.interpreters import mlir

from tpu_lowering import compat

_kernel = jax.extend.core.Primitive("kernel")
_kernel.multiple_results = True


def in_32_bits(function: Callable[..., Sequence[jax.Array]], *operands: jax.Array) -> tuple[jax.Array, ...]:
    """Calls a function of arrays that is lowered, for a TPU, with x64 mode off.

    Nothing in the function may have 64-bit elements. Traceable under ``jax.jit``; it cannot run on its own, and
    has no gradient.
    """
    return tuple(_kernel.bind(*operands, closed=jax.make_jaxpr(function)(*operands)))


@_kernel.def_abstract_eval
def _types(*_: Any, closed: Any) -> list[Any]:
    return closed.out_avals


def _lower(context: Any, *operands: Any, closed: Any) -> Any:
    with compat.enable_x64(False):
        return mlir.lower_fun(jax.extend.core.jaxpr_as_fun(closed), multiple_results=True)(context, *operands)


mlir.register_lowering(_kernel, _lower, platform="tpu")

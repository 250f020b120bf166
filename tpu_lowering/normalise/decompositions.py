"""Which operators are taken apart before lowering: torch's core ATen set, less ``KEPT``, plus ``ADDED``.

An operator stays whole if one JAX rule says more than the parts would: about precision (the parts round
narrow floats between them), about intent (a softmax is one kernel) or simply in fewer lines of program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.compat import core_aten_decompositions, registered_decompositions
from tpu_lowering.ir.types import bf16, f16
from tpu_lowering.normalise import attention, draws, fast_paths
from tpu_lowering.normalise.foreach import foreach_decompositions
from tpu_lowering.normalise.spellings import spellings

aten = compat.aten

KEPT: dict[str, tuple[compat.OpOverload, ...]] = {
    "computed in float32 inside, where the parts would round narrow floats one by one": (
        aten.addcdiv.default,
        aten.addcmul.default,
        aten.baddbmm.default,
        aten.gelu_backward.default,
        aten.leaky_relu_backward.default,
        aten.lerp.Scalar,
        aten.lerp.Tensor,
        aten.logsumexp.default,
        aten.mvlgamma.default,
        aten.rsub.Scalar,
        aten.rsub.Tensor,
        aten.sigmoid_backward.default,
        aten.silu.default,
        aten.silu_backward.default,
        aten.softplus.default,
        aten.tanh_backward.default,
    ),
    "a row reduction that pays to fuse as one kernel": (
        aten._log_softmax_backward_data.default,
        aten._safe_softmax.default,
        aten._softmax_backward_data.default,
        aten.native_batch_norm_backward.default,
        aten.native_group_norm_backward.default,
        aten.native_layer_norm_backward.default,
    ),
    "attention that library kernels exist for": (aten._scaled_dot_product_flash_attention_for_cpu.default,),
    "an allocation, whose undefined contents the analyses look for": (
        aten.empty_like.default,
        aten.new_empty.default,
    ),
    "a constant: one node names its value": (
        aten.eye.default,
        aten.eye.m,
        aten.fill.Scalar,
        aten.fill.Tensor,
        aten.new_full.default,
        aten.new_ones.default,
        aten.new_zeros.default,
        aten.ones.default,
        aten.ones_like.default,
        aten.zero.default,
        aten.zeros.default,
        aten.zeros_like.default,
    ),
    "a view: one node says which": (
        aten._reshape_alias.default,
        aten._unsafe_view.default,
        aten.detach.default,
        aten.split.Tensor,
        aten.split_with_sizes_copy.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.t.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unsafe_split.Tensor,
    ),
    "a gather or scatter with one JAX counterpart": (
        aten._unsafe_index.Tensor,
        aten._unsafe_index_put.default,
        aten.embedding_dense_backward.default,
        aten.index_add.default,
        aten.index_copy.default,
        aten.index_fill.int_Scalar,
        aten.index_fill.int_Tensor,
        aten.select_scatter.default,
        aten.take.default,
        aten.unfold_backward.default,
    ),
    "one JAX function": (
        aten.all.default,
        aten.all.dim,
        aten.all.dims,
        aten.dot.default,
        aten.isneginf.default,
        aten.isposinf.default,
        aten.masked_fill.Scalar,
        aten.masked_fill.Tensor,
        aten.mv.default,
        aten.nan_to_num.default,
        aten.roll.default,
        aten.sgn.default,
        aten.stack.default,
        aten.sum.default,
        aten.threshold_backward.default,
        aten.tril.default,
        aten.triu.default,
        aten.vdot.default,
    ),
}

PRIMITIVES = (compat.prims.convert_element_type.default, compat.prims.fma.default, compat.prims.iota.default)
"""Primitives with rows of their own: torch's decompositions are made of them."""

ADDED: dict[str, tuple[compat.OpOverload, ...]] = {
    "writes the running statistics without saying so": (aten.native_batch_norm.default,),
    "resizing: gathers and weighted sums": (
        aten.upsample_bicubic2d.default,
        aten.upsample_bilinear2d.default,
        aten.upsample_bilinear2d.vec,
        aten.upsample_nearest2d.vec,
        aten.upsample_trilinear3d.default,
        aten.upsample_trilinear3d.vec,
    ),
}


def linspace(
    floating: Callable[..., torch.Tensor],
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """``torch.linspace`` as eager rounds it: whole numbers are ``start`` and ``end`` cut off, then float64 steps from
    both ends, cut off again (``linspace_kernel`` in ATen's RangeFactoriesKernel.cpp). torch's decomposition,
    ``floating``, steps from uncut ends in float32."""
    if dtype is None or dtype.is_floating_point or dtype.is_complex or steps < 2:
        return floating(start, end, steps, dtype=dtype, **kwargs)
    start, end = (x.to(dtype).double() if isinstance(x, torch.Tensor) else int(x) for x in (start, end))
    numbers = torch.arange(steps, dtype=torch.float64, device=kwargs.get("device"))
    divisor = steps - 1 + 0 * (end - start)  # XLA multiplies by the rounded inverse of a constant divisor
    step = (end - start) / divisor
    return torch.where(numbers < steps // 2, start + step * numbers, end - step * (steps - 1 - numbers)).to(dtype)


def logspace(
    floating: Callable[..., torch.Tensor],
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """``torch.logspace``, whose ends eager rounds to a narrow type first, unless there is but one step
    (``logspace_kernel`` in ATen's RangeFactoriesKernel.cpp); torch's decomposition, ``floating``, does not."""
    if dtype in (torch.bfloat16, torch.float16) and steps != 1:
        narrow = (bf16 if dtype == torch.bfloat16 else f16).numpy
        start, end = (
            x.to(dtype) if isinstance(x, torch.Tensor) else float(np.asarray(x, narrow)) for x in (start, end)
        )
    return floating(start, end, steps, base, dtype=dtype, **kwargs)


LOGSPACE = (
    aten.logspace.default,
    aten.logspace.Tensor_Tensor,
    aten.logspace.Tensor_Scalar,
    aten.logspace.Scalar_Tensor,
)
LINSPACE = (
    aten.linspace.default,
    aten.linspace.Tensor_Tensor,
    aten.linspace.Tensor_Scalar,
    aten.linspace.Scalar_Tensor,
)


@functools.cache
def _table() -> dict[compat.OpOverload, Callable[..., Any]]:
    table = core_aten_decompositions() | foreach_decompositions() | draws.DECOMPOSITIONS
    table |= attention.DECOMPOSITIONS | fast_paths.DECOMPOSITIONS
    table |= spellings(PRIMITIVES.__contains__)
    table |= {overload: functools.partial(linspace, table[overload]) for overload in LINSPACE if overload in table}
    table |= {overload: functools.partial(logspace, table[overload]) for overload in LOGSPACE if overload in table}
    for overloads in KEPT.values():
        for overload in overloads:
            table.pop(overload, None)  # what one release takes apart another may not
    for overloads in ADDED.values():
        table.update(registered_decompositions(list(filter(None, overloads))))
    return {overload: take_apart for overload, take_apart in table.items() if overload}


def decompositions() -> dict[compat.OpOverload, Callable[..., Any]]:
    """The decomposition of each operator to take apart, as AOTAutograd and ``make_fx`` want it.

    A copy of one table: torch takes half a second to build its own.
    """
    return dict(_table())

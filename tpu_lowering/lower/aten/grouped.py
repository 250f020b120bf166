"""Matrix products of groups of rows, of the sizes that a tensor holds: mixtures of experts."""

from __future__ import annotations

from typing import Any

import jax

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels.libraries import groups_of_rows, rows_times_groups
from tpu_lowering.lower.aten.matmul import product
from tpu_lowering.lower.aten.promotion import finish
from tpu_lowering.lower.table import lowers

aten = compat.aten


@lowers(aten._grouped_mm.default, multiplies="matrices")
def grouped_mm(
    self: Any, mat2: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None, *, out: TensorType
) -> jax.Array:
    """[m, k] @ [g, k, n] by groups of rows; [g, m, k] @ [k, n] by groups of columns; [m, k] @ [k, n] by groups
    of k; [g, m, k] @ [g, k, n] without groups. ``offs`` int32 [g] says where groups end; no form has a bias."""
    if self.ndim == mat2.ndim == 3:
        return finish(product(self, mat2), out)
    if self.ndim == mat2.ndim == 2:
        return groups_of_rows(self.T, mat2, offs, out.dtype)
    if mat2.ndim == 3:
        return rows_times_groups(self, mat2, offs, False, out.dtype)
    return rows_times_groups(mat2.T, self, offs, True, out.dtype).T

"""The operators that only graphs of this package have, each with the JAX function that generated code calls.

Another one is a function on tensors in ``ir``, one on JAX arrays in ``lower``, and a row here. The name of the first is
the name in generated code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tpu_lowering.ir import boxes as on_boxes
from tpu_lowering.ir import collectives as along_axes
from tpu_lowering.ir import contractions as on_axes
from tpu_lowering.ir import convolutions as of_channels
from tpu_lowering.ir import dropped_attention as of_weights
from tpu_lowering.ir import intervals as on_intervals
from tpu_lowering.ir import materialized as written
from tpu_lowering.ir import random as on_keys
from tpu_lowering.ir import rows as on_rows
from tpu_lowering.ir import shardings as on_shardings
from tpu_lowering.lower import (
    boxes,
    collectives,
    contractions,
    convolutions,
    dropped_attention,
    intervals,
    materialized,
    rows,
    shardings,
)
from tpu_lowering.lower.aten import random

OWN: dict[Any, Callable[..., Any]] = {
    on_boxes.read_box: boxes.read_box,
    on_boxes.write_box: boxes.write_box,
    on_keys.derive_key: random.derive_key,
    on_keys.pack_key: random.pack_key,
    on_keys.unpack_key: random.unpack_key,
    on_axes.contract: contractions.contract,
    of_channels.convolve_channels: convolutions.convolve_channels,
    of_weights.dropped_attention: dropped_attention.dropped_attention,
    of_weights.dropped_attention_gradients: dropped_attention.dropped_attention_gradients,
    on_intervals.interval_sums: intervals.interval_sums,
    written.materialize: materialized.materialize,
    written.together: materialized.together,
    on_rows.row_product: rows.row_product,
    on_rows.running_sum: rows.running_sum,
    on_rows.group_sums: rows.group_sums,
    on_rows.rescaled: rows.rescaled,
    on_rows.recentred: rows.recentred,
    along_axes.all_reduce: collectives.all_reduce,
    along_axes.all_gather: collectives.all_gather,
    along_axes.reduce_scatter: collectives.reduce_scatter,
    along_axes.all_to_all: collectives.all_to_all,
    along_axes.broadcast: collectives.broadcast,
    along_axes.own_part: collectives.own_part,
    along_axes.after: collectives.after,
    along_axes.mesh_coordinate: collectives.mesh_coordinate,
    on_shardings.constrain: shardings.constrain,
}

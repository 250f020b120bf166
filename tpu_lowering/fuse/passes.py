"""All passes of fusing, in their order."""

from __future__ import annotations

from tpu_lowering.fuse.choose.choices import Chooser
from tpu_lowering.fuse.compare_scattered import CompareScattered
from tpu_lowering.fuse.compute_once import ComputeOnce
from tpu_lowering.fuse.concatenate_in_product import ConcatenateInProduct
from tpu_lowering.fuse.contract_heads import ContractBatches, ContractHeads
from tpu_lowering.fuse.expand_rows import ExpandRows
from tpu_lowering.fuse.fuse_around_kernels import FuseAroundKernels
from tpu_lowering.fuse.fuse_attention import FuseAttention
from tpu_lowering.fuse.fuse_long_rows import FuseLongRows
from tpu_lowering.fuse.fuse_rows import FuseRows
from tpu_lowering.fuse.gather_first import GatherFirst
from tpu_lowering.fuse.merge_equal import MergeEqual
from tpu_lowering.fuse.repeat_elements import RepeatElements
from tpu_lowering.fuse.select_rows import SelectRows
from tpu_lowering.fuse.slice_first import SliceFirst
from tpu_lowering.fuse.sum_gathered import SumGathered
from tpu_lowering.fuse.sum_intervals import SumIntervals
from tpu_lowering.fuse.take_experts_as_stored import TakeExpertsAsStored
from tpu_lowering.passes.base import Pass
from tpu_lowering.passes.convolve_channels import ConvolveChannels


def fusion(chooser: Chooser | None = None) -> tuple[Pass, ...]:
    """Passes that make kernels of operators; before these, what is computed of fewer rows, and products over what lies
    as it is stored. ``chooser`` chooses between forms; None takes each pass's own choice."""
    rows_used = (GatherFirst(), SumGathered(), SliceFirst(), ConvolveChannels())
    products = (ContractHeads(), TakeExpertsAsStored(), SelectRows(), RepeatElements(), SumIntervals())
    attention = (FuseAttention(), ContractBatches(), FuseAroundKernels(), ConcatenateInProduct(), MergeEqual())
    rows = (ExpandRows(), MergeEqual(), FuseRows(chooser), FuseLongRows(chooser), CompareScattered(), ComputeOnce())
    return (*rows_used, *products, *attention, *rows)


FUSION = frozenset(pass_.name for pass_ in fusion())
"""Names of all these passes."""

ROW_KERNELS = frozenset(pass_.name for pass_ in (ExpandRows(), FuseRows(), FuseLongRows()))
"""Those that make kernels of rows, and take operators apart for them."""

KERNELS = ROW_KERNELS | {pass_.name for pass_ in (FuseAttention(), FuseAroundKernels())}
"""Those that make any kernel."""

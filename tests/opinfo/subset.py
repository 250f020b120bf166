"""The entries that the default test suite runs: some of every family, a few samples of each."""

from __future__ import annotations

SAMPLES = 4

OPERATORS = """
    abs add addmm all amax any arange argmax as_strided bmm cat ceil clamp clone cos cumsum diagonal div.floor_rounding
    einsum eq exp expand fft.fft fft.irfft flip floor_divide full_like gather index_add index_put index_select
    isnan lerp linalg.inv linalg.solve linalg.vector_norm log_softmax logsumexp masked_fill matmul max.reduction_with_dim
    mean median meshgrid.list_of_tensors mul nan_to_num nn.functional.avg_pool2d nn.functional.batch_norm
    nn.functional.conv1d nn.functional.conv2d nn.functional.conv_transpose2d nn.functional.cross_entropy
    nn.functional.embedding nn.functional.gelu nn.functional.group_norm nn.functional.interpolate.bilinear
    nn.functional.layer_norm nn.functional.linear nn.functional.max_pool2d nn.functional.mse_loss
    nn.functional.pad.reflect nn.functional.silu norm permute pow prod remainder repeat roll round scatter_add
    scatter_reduce.amax searchsorted sigmoid slice softmax sort split stack std sub sum take_along_dim tanh
    tensordot topk trace transpose tril unbind unfold unsqueeze var view where zeros_like
"""

GRADIENTS = """
    cumsum div.no_rounding_mode exp gather index_select linalg.inv log_softmax logsumexp matmul mul
    nn.functional.conv2d nn.functional.cross_entropy nn.functional.gelu nn.functional.layer_norm
    nn.functional.max_pool2d pow prod sum where
"""

MODULES = "nn_Conv1d nn_GroupNorm nn_LayerNorm nn_Linear nn_TransformerEncoderLayer"

OPTIMIZERS = "Adam SGD"

BFLOAT16 = "add amax cumsum matmul mean mul nn.functional.gelu nn.functional.layer_norm softmax sum"

INT64 = "add bitwise_and cumsum div.floor_rounding floor_divide gather pow prod remainder sort sum where"

BOOL = "all any argmax cat eq logical_and sum where"

COMPLEX64 = "abs add angle conj mul exp matmul view_as_real"

# Database, column, entries.
SUBSET: tuple[tuple[str, str, str], ...] = (
    ("op", "float32", OPERATORS),
    ("op", "float32 grad", GRADIENTS),
    ("op", "bfloat16", BFLOAT16),
    ("op", "int64", INT64),
    ("op", "bool", BOOL),
    ("op", "complex64", COMPLEX64),
    ("module", "float32", MODULES),
    ("optim", "float32", OPTIMIZERS),
)


def columns() -> dict[tuple[str, str], list[str]]:
    """The columns of each database's entry that is in the subset."""
    found: dict[tuple[str, str], list[str]] = {}
    for database, column, names in SUBSET:
        for name in names.split():
            found.setdefault((database, name), []).append(column)
    return found

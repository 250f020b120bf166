"""Operators against eager, on a few of the sample inputs that torch's own tests use.

A result passes if it is as close to eager as ``torch.testing.assert_close`` wants for its dtype or, where
sums cancel, if its error against the same call in float64 is at most twice eager's own.

By default a third of the operators runs, with ``TPU_LOWERING_SWEEP=all`` (``make test-ops``) all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_methods_invocations import op_db

from tests.lower.evaluate import capture, evaluate

FIRST = 60  # samples are picked evenly from the first so many

SAMPLES = {torch.float32: 2, torch.bfloat16: 1, torch.int64: 1, torch.bool: 1}

TIES = "positions of equal elements: eager's order is not defined (see test_semantics for the stable cases)"
LEFT_OUT = {
    ("kthvalue", torch.int64): TIES,
    ("sort", torch.bfloat16): TIES,
    ("sort", torch.bool): TIES,
    ("topk", torch.bfloat16): TIES,
    ("topk", torch.int64): TIES,
}

# Forward in every dtype of ``SAMPLES`` that torch has samples in.
POINTWISE = """
    abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_left_shift
    bitwise_not bitwise_right_shift ceil clamp copysign cos cosh deg2rad digamma div.floor_rounding
    div.no_rounding_mode div.trunc_rounding eq erf erfc erfinv exp exp2 expm1 floor floor_divide fmax fmin
    fmod frac frexp gcd ge gt heaviside hypot i0 igamma isfinite isinf isnan lerp lgamma log log10 log1p log2
    logaddexp logical_and logical_not logical_or logical_xor logit masked_fill maximum minimum mul nan_to_num
    ne neg nextafter polygamma.polygamma_n_2 pow reciprocal remainder round round.decimals_3 rsqrt rsub
    sgn sigmoid sign signbit sin sinc sinh special.airy_ai special.bessel_j0 special.bessel_j1
    special.bessel_y0 special.bessel_y1 special.entr special.erfcx special.i0e special.i1 special.i1e special.log_ndtr
    special.modified_bessel_i0 special.modified_bessel_i1 special.modified_bessel_k0 special.modified_bessel_k1
    special.ndtr special.ndtri special.scaled_modified_bessel_k0 special.scaled_modified_bessel_k1
    special.spherical_bessel_j0 special.xlog1py special.zeta sqrt square sub tan tanh true_divide trunc where xlogy
    nn.functional.celu nn.functional.elu nn.functional.gelu nn.functional.glu nn.functional.hardshrink
    nn.functional.hardsigmoid nn.functional.hardswish nn.functional.hardtanh nn.functional.leaky_relu
    nn.functional.logsigmoid nn.functional.mish nn.functional.prelu nn.functional.relu nn.functional.silu
    nn.functional.softplus nn.functional.softshrink nn.functional.threshold
"""

# Likewise.
REDUCTIONS = """
    all amax amin any argmax argmin count_nonzero cummax cummin cumprod cumsum kthvalue linalg.vector_norm
    logcumsumexp logsumexp max.reduction_with_dim mean median min.reduction_with_dim mode nanmedian norm prod
    sort std sum topk var var_mean nn.functional.normalize searchsorted histc histogram histogramdd
    nonzero_static _segment_reduce.lengths _segment_reduce.offsets
    softmax log_softmax
"""

# Forward in float32 and bool.
MOVEMENT = """
    as_strided as_strided_scatter cat constant_pad_nd diagonal diagonal_scatter expand eye flip full_like gather
    index_add index_copy index_fill index_put index_reduce.prod index_select linspace masked_scatter movedim
    nn.functional.embedding_bag nn.functional.pad.constant
    nn.functional.pad.reflect nn.functional.pad.replicate nn.functional.unfold ones_like permute put
    repeat repeat_interleave roll scatter scatter_add scatter_reduce.amax scatter_reduce.mean scatter_reduce.prod
    scatter_reduce.sum select select_scatter slice slice_scatter split split_with_sizes squeeze stack
    t take tile transpose tril triu unbind unflatten unfold unsqueeze view_as_complex zeros_like
"""

# Forward in float32 and bfloat16, and gradients in float32.
LAYERS = """
    addbmm addmm addmv baddbmm bmm cdist dist einsum grid_sampler_2d inner linalg.cholesky linalg.eigvals linalg.inv
    linalg.lu_solve linalg.slogdet linalg.solve linalg.solve_triangular matmul mm mv nn.functional.bilinear
    nn.functional.adaptive_avg_pool2d nn.functional.adaptive_max_pool2d nn.functional.avg_pool1d
    nn.functional.avg_pool2d nn.functional.avg_pool3d nn.functional.conv1d nn.functional.conv2d
    nn.functional.conv_transpose2d nn.functional.cross_entropy nn.functional.group_norm
    nn.functional.interpolate.bicubic nn.functional.interpolate.bilinear nn.functional.interpolate.nearest
    nn.functional.layer_norm nn.functional.linear nn.functional.max_pool1d nn.functional.max_pool2d
    nn.functional.mse_loss nn.functional.multi_margin_loss nn.functional.multilabel_margin_loss
    nn.functional.nll_loss nn.functional.pdist _upsample_bilinear2d_aa
    nn.functional.pixel_shuffle nn.functional.rms_norm nn.functional.smooth_l1_loss fft.fft fft.irfft fft.rfft2
    special.legendre_polynomial_p
"""

# Forward in float32 alone.
FACTORS = """
    geqrf hash_tensor linalg.eig linalg.householder_product linalg.ldl_factor_ex linalg.ldl_solve ormqr resize_as_
"""

ALL = tuple(SAMPLES)
FORWARD: dict[str, tuple[torch.dtype, ...]] = {
    **dict.fromkeys(POINTWISE.split(), ALL),
    **dict.fromkeys(REDUCTIONS.split(), ALL),
    **dict.fromkeys(MOVEMENT.split(), (torch.float32, torch.bool)),
    **dict.fromkeys(LAYERS.split(), (torch.float32, torch.bfloat16)),
    **dict.fromkeys(FACTORS.split(), (torch.float32,)),
}

# Gradients in float32, beside those of ``LAYERS``.
GRADIENTS = """
    _segment_reduce.lengths _segment_reduce.offsets amax clamp cumprod cumsum div.no_rounding_mode gather index_add index_select linalg.vector_norm log_softmax
    logcumsumexp logsumexp masked_scatter max.reduction_with_dim maximum mean median nn.functional.elu
    nn.functional.embedding_bag nn.functional.gelu nn.functional.hardshrink nn.functional.leaky_relu nn.functional.normalize
    nn.functional.pad.reflect nn.functional.pad.replicate nn.functional.relu nn.functional.silu
    nn.functional.softplus nn.functional.unfold pow prod scatter_add scatter_reduce.amax sigmoid softmax sort std
    sum take tanh topk unfold var where
"""

BACKWARD = sorted({*LAYERS.split(), *GRADIENTS.split()})


@dataclasses.dataclass(frozen=True)
class Call:
    """One sample of an operator as a function of its tensors."""

    function: Callable[..., Any]
    tensors: tuple[torch.Tensor, ...]

    def exactly(self) -> list[torch.Tensor]:
        """The results for the same tensors in float64."""
        return _tensors(self.function(*(x.double() if x.is_floating_point() else x for x in self.tensors)))


def _op_info(name: str) -> Any:
    """The entry of torch's operator database; ``name.variant`` names a variant."""
    for op in op_db:
        if name in (op.name, f"{op.name}.{op.variant_test_name}") and (
            not op.variant_test_name or name.endswith(op.variant_test_name)
        ):
            return op
    raise KeyError(name)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _calls(op: Any, dtype: torch.dtype, requires_grad: bool = False) -> list[Call]:
    """``SAMPLES`` calls of the operator, spread over its sample inputs."""
    torch.manual_seed(0)
    count = SAMPLES[dtype]
    found = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=requires_grad), FIRST))
    return [_call(op, sample) for sample in found[:: max(1, len(found) // count)][:count]]


def _call(op: Any, sample: Any) -> Call:
    """The sample with its tensors as the arguments."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(filled, spec)
        return op.op(first, *args, **kwargs)

    return Call(function, tuple(leaves[i] for i in places))


def _gradient_of(call: Call) -> Call:
    """The gradients of the sum of the call's results by those tensors that the sample wants them of."""
    wanted = [x.requires_grad for x in call.tensors]

    def function(*tensors: torch.Tensor) -> Any:
        leaves = [x.detach().requires_grad_(grad) for x, grad in zip(tensors, wanted, strict=True)]
        results = [x for x in _tensors(call.function(*leaves)) if x.requires_grad]
        if not results:
            return []
        by = [x for x in leaves if x.requires_grad]
        return torch.autograd.grad(results, by, [torch.ones_like(x) for x in results], allow_unused=True)

    return Call(function, tuple(x.detach() for x in call.tensors))


def _check(calls: list[Call]) -> None:
    """Runs the calls through the table, all as one program, and compares each with eager."""
    eager = [_tensors(call.function(*call.tensors)) for call in calls]
    graphs = [capture(call.function, *call.tensors) for call in calls]
    ours = [_tensors(result) for result in evaluate(graphs, [call.tensors for call in calls])]
    for call, got, expected in zip(calls, ours, eager, strict=True):
        assert len(got) == len(expected)
        try:
            for x, y in zip(got, expected, strict=True):
                torch.testing.assert_close(x, y.detach(), equal_nan=True, check_stride=False)
        except AssertionError:
            _check_against_float64(got, expected, call.exactly())


def _check_against_float64(got: list[torch.Tensor], eager: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Asserts an error of at most twice eager's, and NaN and infinities in the same places."""
    for x, y, truth in zip(got, eager, exact, strict=True):
        assert x.dtype == y.dtype
        assert x.dtype.is_floating_point, "integers must agree"
        finite = truth.isfinite() & y.isfinite()
        assert torch.equal(x.isfinite(), y.isfinite())
        ours, theirs = (x.double() - truth)[finite].abs().max(), (y.double() - truth)[finite].abs().max()
        assert ours <= 2 * theirs, f"error {ours:.2e}, eager's {theirs:.2e}"


@pytest.mark.sweep
@pytest.mark.parametrize("name", FORWARD)
def test_forward_matches_eager(name: str) -> None:
    op = _op_info(name)
    dtypes = [x for x in FORWARD[name] if op.supports_dtype(x, "cpu") and (name, x) not in LEFT_OUT]
    _check([call for dtype in dtypes for call in _calls(op, dtype)])


@pytest.mark.sweep
@pytest.mark.parametrize("name", BACKWARD)
def test_backward_matches_eager(name: str) -> None:
    _check([_gradient_of(call) for call in _calls(_op_info(name), torch.float32, requires_grad=True)])

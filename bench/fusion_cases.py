"""What fusion is measured on: row reductions with their gradients, at the shapes of a large model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench import fusion_attention
from bench.kernels.exp import exp_into

aten = torch.ops.aten
bf16, f32 = torch.bfloat16, torch.float32
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class FusionCase:
    """One computation.

    Attributes:
        name: as tables show it.
        fn: the computation.
        shapes: dtype and shape of its arguments.
        goal: HBM bytes over those of XLA alone that are asked for at most; None if none are.
        simulate: whether its schedule is simulated; that of flash attention takes minutes and gigabytes.
    """

    name: str
    fn: Function
    shapes: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    goal: float | None = None
    simulate: bool = True

    def example(self) -> tuple[torch.Tensor, ...]:
        """Arguments; their values mean nothing."""
        return tuple(torch.zeros(shape, dtype=dtype) for dtype, shape in self.shapes)

    def note(self) -> str:
        return ", ".join(f"{str(dtype).removeprefix('torch.')} {list(shape)}" for dtype, shape in self.shapes)


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def masked_softmax(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores of attention, scaled, with an additive mask for all heads."""
    return torch.softmax(x * 0.125 + mask, -1)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As Llama writes it: the statistics in float32."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + residual
    return total, rms_norm(total, weight)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels)


def cross_entropy_gradient(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(cross_entropy)(logits, labels)


def group_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, GROUPS, weight, bias)


def group_norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> Any:
    """Gradients of the input, of the weight and of the bias."""
    count, channels, height, width = x.shape
    return aten.native_group_norm_backward(
        gradient, x, mean, rstd, weight, count, channels, height * width, GROUPS, [True, True, True]
    )


def head_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rms_norm of each head, of rows of all heads and for such."""
    return rms_norm(x.view(*x.shape[:-1], -1, weight.shape[0]), weight).view_as(x)


def softmax_backward(gradient: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    return aten._softmax_backward_data(gradient, result, -1, result.dtype)


def layer_norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> Any:
    """Gradients of the input, of the weight and of the bias."""
    return aten.native_layer_norm_backward(
        gradient, x, [x.shape[-1]], mean, rstd, weight, torch.zeros_like(weight), [True, True, True]
    )


def rms_norm_gradients(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> Any:
    return torch.func.vjp(rms_norm, x, weight)[1](gradient)


def quantised_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 with a scale for each row."""
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    return (x.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def normalised(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1)


def kl_divergence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.kl_div(F.log_softmax(x, -1), F.log_softmax(y, -1), log_target=True, reduction="batchmean")


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, as Llama writes it."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def rotary_gradient(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, gradient: torch.Tensor) -> Any:
    return torch.func.vjp(lambda x: rotary(x, cos, sin), x)[1](gradient)


def gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The first half of a gated layer."""
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def product_and_softmax(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ weight, -1)


def projected(
    x: torch.Tensor, projection: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The end of an attention and the norm after it; both sums are needed."""
    return add_rms_norm(F.linear(x, projection), residual, weight)


def around_a_kernel(x: torch.Tensor) -> torch.Tensor:
    """`exp` in destination-passing style, between two pointwise operators."""
    twice = x * 2
    out = torch.empty_like(x)
    exp_into(twice, out)
    return out + 1


ROWS = (8192, 4096)
LONG = 1 << 20  # elements of a row that no block in VMEM holds
IMAGES = (32, 512, 32, 32)
GROUPS = 32
HEADS = (bf16, (8, 16, 2048, 128))
ANGLES = (bf16, (8, 1, 2048, 128))
CASES: tuple[FusionCase, ...] = (
    FusionCase("softmax f32", softmax, ((f32, (8192, 8192)),), 0.50),
    FusionCase("softmax bf16", softmax, ((bf16, (8192, 8192)),), 0.50),
    FusionCase("softmax of long rows", softmax, ((f32, (64, LONG)),), 0.75),
    FusionCase("softmax of columns", functools.partial(torch.softmax, dim=0), ((bf16, (4096, 8192)),)),
    FusionCase("log_softmax", functools.partial(torch.log_softmax, dim=-1), ((bf16, (8192, 8192)),)),
    FusionCase("masked softmax", masked_softmax, ((bf16, (4, 16, 1024, 1024)), (bf16, (4, 1, 1024, 1024)))),
    FusionCase("layer_norm", layer_norm, ((bf16, ROWS), (bf16, (4096,)), (bf16, (4096,))), 0.50),
    FusionCase("layer_norm of long rows", layer_norm, ((bf16, (256, LONG)), *((bf16, (LONG,)),) * 2), 0.75),
    FusionCase("logsumexp", functools.partial(torch.logsumexp, dim=-1), ((f32, ROWS),), 0.51),
    FusionCase("rms_norm", rms_norm, ((bf16, ROWS), (bf16, (4096,))), 0.67),
    FusionCase("add and rms_norm", add_rms_norm, ((bf16, ROWS), (bf16, ROWS), (bf16, (4096,))), 0.67),
    FusionCase("cross entropy", cross_entropy, ((bf16, (8192, 32768)), (torch.int64, (8192,))), 0.18),
    FusionCase("cross entropy gradient", cross_entropy_gradient, ((bf16, (8192, 32768)), (torch.int64, (8192,)))),
    FusionCase("cross entropy of long rows", cross_entropy, ((bf16, (256, LONG)), (torch.int64, (256,))), 0.25),
    FusionCase(
        "cross entropy of long, ragged rows", cross_entropy, ((bf16, (256, 10**6)), (torch.int64, (256,))), 0.25
    ),
    FusionCase(
        "cross entropy gradient of long rows", cross_entropy_gradient, ((bf16, (256, LONG)), (torch.int64, (256,)))
    ),
    FusionCase("softmax backward", softmax_backward, ((bf16, ROWS), (bf16, ROWS)), 0.67),
    FusionCase(
        "layer_norm backward",
        layer_norm_backward,
        ((bf16, ROWS), (bf16, ROWS), (f32, (8192, 1)), (f32, (8192, 1)), (bf16, (4096,))),
        0.67,
    ),
    FusionCase("group_norm", group_norm, ((bf16, IMAGES), (bf16, (512,)), (bf16, (512,))), 0.67),
    FusionCase("group_norm, wide", group_norm, ((bf16, (8, 128, 128, 128)), (bf16, (128,)), (bf16, (128,))), 0.67),
    FusionCase(
        "group_norm backward",
        group_norm_backward,
        (*((bf16, IMAGES),) * 2, *((bf16, (32, GROUPS)),) * 2, (bf16, (512,))),
        0.67,
    ),
    FusionCase("per-head rms_norm", head_norm, ((bf16, (8, 1024, 4096)), (bf16, (128,))), 0.50),
    FusionCase("per-head rms_norm, narrow", head_norm, ((bf16, (8, 1024, 4096)), (bf16, (64,))), 0.50),
    FusionCase("rms_norm with gradients", rms_norm_gradients, ((bf16, ROWS), (bf16, (4096,)), (bf16, ROWS))),
    FusionCase("quantise rows", quantised_rows, ((bf16, ROWS),)),
    FusionCase("normalise rows", normalised, ((bf16, ROWS),)),
    FusionCase("rotary embedding", rotary, (HEADS, ANGLES, ANGLES)),
    FusionCase("rotary embedding's gradient", rotary_gradient, (HEADS, ANGLES, ANGLES, HEADS)),
    FusionCase("running sum", functools.partial(torch.cumsum, dim=-1), ((f32, ROWS),)),
    FusionCase("running sum of columns", functools.partial(torch.cumsum, dim=0), ((f32, ROWS),)),
    FusionCase("gated", gated, ((bf16, (8192, 1024)), *((bf16, (4096, 1024)),) * 2)),
    FusionCase("product and softmax", product_and_softmax, ((bf16, (8192, 1024)), (bf16, (1024, 2048)))),
    FusionCase(
        "product, add and rms_norm",
        projected,
        ((bf16, (8192, 2048)), (bf16, (2048, 2048)), (bf16, (8192, 2048)), (bf16, (2048,))),
    ),
    FusionCase("x*2, kernel, +1", around_a_kernel, ((f32, (102_400, 1024)),), 0.34),
    FusionCase("causal attention", fusion_attention.fused, (HEADS, HEADS, HEADS), 0.10, simulate=False),
    FusionCase(
        "causal attention, written out", fusion_attention.written_out, (HEADS, HEADS, HEADS), 0.10, simulate=False
    ),
    FusionCase(
        "attention in training, written out",
        fusion_attention.written_out_in_training,
        ((bf16, (4, 8, 1024, 64)),) * 4,
        simulate=False,
    ),
    FusionCase(
        "attention in training, padded keys",
        fusion_attention.encoder_in_training,
        (*((bf16, (16, 12, 512, 64)),) * 4, (torch.bool, (16, 512))),
        simulate=False,
    ),
    FusionCase("attention of 197 keys", fusion_attention.every_key, ((bf16, (64, 12, 197, 64)),) * 3, simulate=False),
    FusionCase(
        "paged decode",
        fusion_attention.paged_decode,
        ((bf16, (16, 32, 1, 128)), *((bf16, (8, 1024, 64, 128)),) * 2, (torch.int64, (16, 64)), (torch.int64, (16,))),
        0.25,
        simulate=False,
    ),
    FusionCase(
        "paged decode, written out",
        fusion_attention.paged_decode_written_out,
        ((bf16, (32, 32, 1, 128)), *((bf16, (2048, 8, 16, 128)),) * 2, (torch.int32, (32, 64)), (torch.int32, (32,))),
        0.15,
        simulate=False,
    ),
    FusionCase("KL divergence", kl_divergence, ((bf16, (8192, 8192)), (bf16, (8192, 8192)))),
)

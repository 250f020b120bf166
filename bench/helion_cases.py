"""Helion's own example kernels, and arguments to compile each of them for: moderate sizes, values never used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

BF16, F32, I32, FP8 = torch.bfloat16, torch.float32, torch.int32, torch.float8_e4m3fn


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel of the examples folder.

    Attributes:
        module: file of the examples folder, without ``.py``; with a folder as ``linear.linear_attention_engine``.
        kernel: attribute of the module.
        arguments: builds the positional arguments from the module.
        config: fields of the Helion config to compile with; None for the kernel's own, or Helion's default.
    """

    module: str
    kernel: str
    arguments: Callable[[Any], tuple[Any, ...]]
    config: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.module.rpartition('.')[2]}.{self.kernel}"


def case(module: str, kernel: str, *arguments: Any, config: Mapping[str, Any] | None = None) -> Case:
    """A case whose arguments are given: shapes as ``tensor`` takes them become tensors, others stay."""
    return Case(
        module,
        kernel,
        lambda _: tuple(value.make() if isinstance(value, Spec) else value for value in arguments),
        config,
    )


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor to make: its shape, and its dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=self.dtype)


def bf16(*shape: int) -> Spec:
    return Spec(shape, BF16)


def f32(*shape: int) -> Spec:
    return Spec(shape, F32)


def i32(*shape: int) -> Spec:
    return Spec(shape, I32)


def fp8(*shape: int) -> Spec:
    return Spec(shape, FP8)


def fp8_matmul(_: Any) -> tuple[Any, ...]:
    """The row scale is a column broadcast along the rows, as the example's own callers pass it."""
    scale = torch.zeros(256, 1).expand(256, 512)
    return fp8(256, 512).make(), fp8(512, 512).make(), scale, torch.zeros(512)


def flex_attention(module: Any) -> tuple[Any, ...]:
    """No score modification, and a block mask that keeps everything."""
    q, k, v = (bf16(2, 4, 256, 64).make() for _ in range(3))
    mask = module._create_empty_block_mask(q, k)
    blocks = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    return q, k, v, module._identity, *blocks, mask.mask_mod, *mask.BLOCK_SIZE, 0.125, False


def jagged(rows: int, columns: int) -> torch.Tensor:
    """Offsets of rows that are all of the same length."""
    return torch.arange(rows + 1, dtype=I32) * columns


ATTENTION = (bf16(2, 4, 512, 128),) * 3
GRPO = (f32(4, 512), f32(4, 512), f32(4, 512), f32(4), f32(4, 512), 0.9, 0.04, 0.2, 0.4)

CASES: tuple[Case, ...] = (
    case("add", "add", bf16(1024, 1024), bf16(1024, 1024)),
    case("aot_compile_example", "add_2d", bf16(1024, 1024), bf16(1024, 1024)),
    case("aot_example", "vector_scale", f32(1 << 20), 2.0),
    case("aot_example", "row_softmax", f32(1024, 1024)),
    case("aot_example", "col_reduce_sum", f32(1024, 1024)),
    case("aot_example", "rms_norm_batched", bf16(1024, 1024)),
    case("aot_example", "rms_norm_oneshot", bf16(1024, 1024)),
    case("aot_example", "matmul_custom_key", bf16(512, 512), bf16(512, 512)),
    case("aot_example", "sum_aot", f32(1024, 1024)),
    case("attention", "attention", *ATTENTION),
    case("attention", "causal_attention", *ATTENTION),
    case("attention", "attention_output", *ATTENTION),
    case("attention", "causal_attention_output", *ATTENTION),
    case("attention", "biased_attention", *ATTENTION, bf16(2, 4, 512, 512)),
    case("attention", "biased_attention_output", *ATTENTION, bf16(2, 4, 512, 512)),
    case("attention", "attention_dynamic", *ATTENTION),
    case("attention", "_attention_bwd_preprocess", *ATTENTION[:2]),
    case(
        "attention", "attention_backward", *ATTENTION, ATTENTION[0], f32(2, 4, 512), ATTENTION[0],
        f32(2, 4, 512), 0.125,
    ),
    case("batch_softmax", "batch_softmax", bf16(16, 512, 1024)),
    case("bf16xint16_gemm", "_bf16xint16_gemm", bf16(512, 512), Spec((512, 512), torch.int16)),
    case("bf16xint16_gemm", "_int16xbf16_gemm", Spec((512, 512), torch.int16), bf16(512, 512)),
    case("bmm", "bmm", bf16(4, 512, 512), bf16(4, 512, 512)),
    case("broadcast_matmul", "broadcast_matmul", bf16(4, 128, 512), bf16(512, 512)),
    case("concatenate", "concat2d_dim1_simple", f32(512, 500), f32(512, 512)),
    case("concatenate", "concat2d_dim1", f32(512, 500), f32(512, 512)),
    case("cross_entropy", "cross_entropy", f32(128, 512), i32(128)),
    case("embedding", "embedding", i32(8, 128), bf16(1024, 256)),
    case(
        "epilogue_subtiling", "matmul_bias_residual_gelu_cast", bf16(512, 512), bf16(512, 512), bf16(512),
        bf16(512, 512),
    ),
    case("epilogue_subtiling", "matmul_bias_gelu_aux", bf16(512, 512), bf16(512, 512), bf16(512)),
    case("exp", "exp_fwd", bf16(1 << 20)),
    case("exp", "exp_bwd", bf16(1 << 20), bf16(1 << 20)),
    Case("flex_attention", "helion_flex_attention_kernel", flex_attention),
    case("fp8_attention", "fp8_attention_kernel", *(fp8(8, 256, 64),) * 2, fp8(8, 64, 256), 2, 4),
    case("fp8_gemm", "fp8_gemm", fp8(256, 256), fp8(256, 256)),
    Case("fp8_matmul", "fp8_matmul", fp8_matmul),
    case("fused_linear_jsd", "jsd_kernel", 0.5, -100, 1.0, f32(256, 1024), f32(256, 1024)),
    case("fused_linear_jsd", "fused_linear_jsd_kernel", 0.5, -100, 1.0, f32(256, 1024), f32(256, 1024)),
    case("gather_gemv", "gather_gemv", bf16(4, 512, 512), i32(2), bf16(512)),
    case("gdn_fwd_h", "helion_gdn_fwd_h", *(bf16(2, 512, 4, 16),) * 2, bf16(2, 512, 4, 32), f32(2, 512, 4), 64),
    case("geglu", "_geglu", bf16(1024, 1024), bf16(1024, 1024)),
    case("geglu", "_geglu_pallas", bf16(1024, 1024), bf16(1024, 1024)),
    case("geglu", "geglu_bwd", bf16(1024, 1024), bf16(1024, 1024), bf16(1024, 1024)),
    case("grouped_gemm", "grouped_gemm_jagged", bf16(192, 64), bf16(64, 64), i32(4)),
    case("grouped_gemm", "grouped_gemm_jagged_persistent", bf16(192, 64), bf16(64, 64), i32(4)),
    case("grpo_loss", "grpo_loss_forward", bf16(4, 513, 2048), *GRPO),
    case(
        "grpo_loss", "grpo_loss_backward", f32(4, 512), bf16(4, 513, 2048), f32(4, 512), i32(4, 512), *GRPO[1:5],
        f32(4, 512), *GRPO[5:],
    ),
    case("int4_gemm", "matmul_bf16_int4", bf16(256, 512), Spec((256, 256), torch.int8)),
    Case(
        "jagged_dense_add", "jagged_dense_add_2d",
        lambda _: (torch.zeros(4096), jagged(64, 64), torch.zeros(64, 128)),
    ),
    Case(
        "jagged_dense_bmm", "jagged_dense_bmm",
        lambda _: (jagged(16, 32), torch.zeros(512, 32), torch.zeros(16, 32, 24), torch.zeros(16, 24)),
    ),
    Case(
        "jagged_hstu_attn", "_helion_jagged_attention_kernel",
        lambda _: (64, 0.01, *(bf16(256, 8, 32).make() for _ in range(3)), jagged(4, 64)),
    ),
    Case(
        "jagged_hstu_attn_2", "jagged_hstu_attention",
        lambda _: (128, 1.2, 4.5, *(f32(512, 4, 64).make() for _ in range(3)), jagged(4, 128)),
        {"block_sizes": [128, 128]},
    ),
    Case("jagged_layer_norm", "jagged_layer_norm_kernel", lambda _: (torch.zeros(4096, 8), jagged(128, 32), 1e-6)),
    Case(
        "jagged_mean", "jagged_mean_kernel",
        lambda _: (torch.zeros(1024, 8), jagged(32, 32), torch.ones(32, dtype=I32), 8),
    ),
    Case("jagged_softmax", "jagged_softmax_kernel", lambda _: (torch.zeros(4096, 8), jagged(128, 32))),
    Case("jagged_sum", "jagged_sum_kernel", lambda _: (torch.zeros(4096, 8), jagged(128, 32))),
    case("jsd", "jsd_forward", f32(1024, 4096), f32(1024, 4096)),
    case("kl_div", "kl_div_forward", f32(1024, 4096), f32(1024, 4096)),
    Case(
        "layer_norm", "layer_norm_fwd",
        lambda _: (bf16(1024, 1024).make(), [1024], bf16(1024).make(), bf16(1024).make()),
    ),
    case(
        "layer_norm", "layer_norm_bwd", bf16(1024, 1024), bf16(1024, 1024), f32(1024), f32(1024), bf16(1024), True,
    ),
    case("long_sum", "longsum", f32(8, 130000)),
    case("long_sum", "longsum_w_red_loop", f32(8, 130000)),
    case("long_sum", "longsum_manual", f32(8, 65536)),
    case("low_mem_dropout", "low_mem_dropout", 0.25, f32(1 << 18), 123),
    case("low_mem_dropout", "low_mem_dropout_bwd", 0.25, f32(1 << 18), 123),
    case(
        "mamba2_chunk_scan", "helion_mamba2_chunk_scan_kernel", bf16(2, 4, 1, 64, 64), bf16(2, 256, 8, 32),
        bf16(2, 8, 4, 64), bf16(2, 8, 4, 64), bf16(2, 256, 1, 16), bf16(2, 4, 8, 32, 16), bf16(8),
    ),
    case(
        "mamba2_chunk_state", "helion_mamba2_chunk_state_kernel", bf16(2, 256, 1, 16), bf16(2, 256, 8, 32),
        bf16(2, 8, 4, 64), bf16(2, 8, 4, 64),
    ),
    case("matmul", "matmul", bf16(1024, 1024), bf16(1024, 1024)),
    case("matmul_layernorm", "matmul_layernorm", bf16(512, 512), bf16(512, 512), bf16(512), bf16(512)),
    case("matmul_split_k", "matmul_split_k", bf16(256, 1024), bf16(1024, 256)),
    case("moe_matmul_ogs", "moe_matmul_ogs", bf16(256, 512), bf16(4, 512, 256), i32(4), i32(5), i32(256), 64),
    case("rms_norm", "rms_norm_fwd", bf16(1024, 1024), bf16(1024)),
    case("rms_norm", "rms_norm_bwd", bf16(1024, 1024), bf16(1024, 1024), bf16(1024), f32(1024, 1)),
    case("rope", "rope_fwd", bf16(2, 8, 256, 128), bf16(2, 8, 256, 128), bf16(2, 256, 128), bf16(2, 256, 128)),
    case("rope", "rope_bwd", bf16(2, 8, 256, 128), bf16(2, 8, 256, 128), bf16(2, 256, 128), bf16(2, 256, 128)),
    case("se_block", "se_block_fwd", bf16(256, 256), bf16(256, 256)),
    case("se_block", "se_block_bwd_dx", *(bf16(256, 256),) * 4),
    case("se_block", "se_block_bwd_dw", *(bf16(256, 256),) * 3),
    case("softmax", "softmax", bf16(1024, 1024)),
    case("softmax", "softmax_decomposed", bf16(1024, 1024)),
    case("softmax", "softmax_two_pass", bf16(1024, 1024)),
    case("softmax", "softmax_bwd", bf16(1024, 1024), bf16(1024, 1024)),
    case("split_k_barrier", "split_k_matmul", f32(64, 512), f32(512, 64)),
    case("squeeze_and_excitation_net", "squeeze_and_excitation_net_fwd", *(f32(256, 256),) * 3),
    case("squeeze_and_excitation_net", "squeeze_and_excitation_net_bwd_dx", *(f32(256, 256),) * 6),
    case("squeeze_and_excitation_net", "squeeze_and_excitation_net_bwd_da", *(f32(256, 256),) * 5),
    case("squeeze_and_excitation_net", "squeeze_and_excitation_net_bwd_db", *(f32(256, 256),) * 4),
    case("sum", "sum_kernel", f32(1024, 1024)),
    case("swiglu", "_swiglu_fwd", bf16(1024, 1024), bf16(1024, 1024)),
    case("swiglu", "_swiglu_fwd_pallas", bf16(1024, 1024), bf16(1024, 1024)),
    case("swiglu", "swiglu_bwd", bf16(1024, 1024), bf16(1024, 1024), bf16(1024, 1024)),
    case("welford", "welford", f32(1024), f32(1024), f32(1024, 1024)),
    case("xsa", "xsa_kernel", *ATTENTION),
)  # fmt: skip


def check_names() -> None:
    """Every name is of one case.

    Raises:
        ValueError: two cases have the same name.
    """
    names = [entry.name for entry in CASES]
    if len(set(names)) != len(names):
        raise ValueError(f"expected cases with different names, got {math.fsum(names.count(n) > 1 for n in names)}")

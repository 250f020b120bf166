"""Nine Helion kernels that write into a buffer the caller allocated, each with the PyTorch it replaces.

`KERNELS` is the table. The kernels are compiled by Helion's Pallas backend and are never launched by it
here: `torch.compile` captures the call and the project's own backend runs the generated code.
"""

import torch

from bench.kernels import (
    add,
    attention,
    bmm,
    exp,
    geglu,
    low_mem_dropout,
    softmax_two_pass,
    swiglu,
    welford,
)
from bench.kernels.case import Inputs, KernelCase, Tolerance, in_dtype

__all__ = ["KERNELS", "Inputs", "KernelCase", "Tolerance", "in_dtype"]

EXACT = {torch.float32: Tolerance(0.0, 0.0), torch.bfloat16: Tolerance(0.0, 0.0)}
# The same float32 formula up to the order of additions and the last bit of `exp`; one rounding to bfloat16.
ROUNDED = {torch.float32: Tolerance(1e-5, 1e-6), torch.bfloat16: Tolerance(2.0**-7, 1e-6)}
# Sums of a thousand products of size 1: their float32 error does not shrink when they cancel.
SUMMED = {torch.float32: Tolerance(1e-5, 5e-4), torch.bfloat16: Tolerance(2.0**-7, 1e-3)}
# Weights of a mean: in bfloat16 each is off by one part in 256, so the mean of values of size 1 by as much.
WEIGHED = {torch.float32: Tolerance(1e-5, 2e-6), torch.bfloat16: Tolerance(2.0**-7, 2.0**-8)}

KERNELS: tuple[KernelCase, ...] = (
    KernelCase("exp", exp.exp_into, exp.model, exp.reference, exp.example, ROUNDED),
    KernelCase("add", add.add_into, add.model, add.reference, add.example, EXACT),
    KernelCase(
        "softmax_two_pass",
        softmax_two_pass.softmax_two_pass_into,
        softmax_two_pass.model,
        softmax_two_pass.reference,
        softmax_two_pass.example,
        ROUNDED,
    ),
    KernelCase("welford", welford.welford_into, welford.model, welford.reference, welford.example, ROUNDED),
    KernelCase(
        "attention",
        attention.attention_into,
        attention.model,
        attention.reference,
        attention.example,
        WEIGHED,
    ),
    KernelCase("bmm", bmm.bmm_into, bmm.model, bmm.reference, bmm.example, SUMMED),
    KernelCase("geglu", geglu.geglu_into, geglu.model, geglu.reference, geglu.example, ROUNDED),
    KernelCase(
        "low_mem_dropout",
        low_mem_dropout.low_mem_dropout_into,
        low_mem_dropout.model,
        low_mem_dropout.reference,
        low_mem_dropout.example,
        EXACT,
    ),
    KernelCase("swiglu", swiglu.swiglu_into, swiglu.model, swiglu.reference, swiglu.example, ROUNDED),
)
"""Every kernel, in the order reports list them."""

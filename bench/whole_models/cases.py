"""All cases, in the order of the tables."""

from __future__ import annotations

from types import ModuleType

from bench.whole_models import (
    accumulation,
    adamw,
    bert,
    bert_dropout,
    checkpointed,
    deepseek,
    gemma3,
    llama,
    long,
    mamba2,
    mixtral,
    paged,
    quantised,
    qwen3_moe,
    resnet,
    t5,
    unet,
    vit,
)
from bench.whole_models.case import Case

MODULES: tuple[ModuleType, ...] = (
    llama, long, paged, accumulation, checkpointed, adamw, gemma3, deepseek, mixtral, qwen3_moe, mamba2, bert,
    bert_dropout, t5, vit, resnet, unet, quantised,
)  # fmt: skip

CASES: dict[str, Case] = {case.name: case for module in MODULES for case in module.CASES}

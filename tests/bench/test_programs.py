"""How the form without passes is cut: a view costs nothing, neither a program nor a copy."""

from __future__ import annotations

import torch

from bench import models
from bench.kernels import attention
from tpu_lowering import aot
from tpu_lowering.analyse import splits
from tpu_lowering.ir import chips
from tpu_lowering.ir.operators import is_allocation
from tpu_lowering.report import chip
from tpu_lowering.runtime.aot.as_written import split_programs


def test_parts_take_views_of_their_inputs_and_return_none() -> None:
    normalised = chip.Normalised()
    inputs = attention.example(True)
    aot.capture(attention.model, inputs, {}, chips.find("tpu7x"), {}, (normalised,))
    (module,) = normalised.modules
    rule = splits.RULES["torch_tpu"]
    parts = split_programs(module, rule)
    assert len(parts) == splits.program_count(module.graph, rule) == 2
    (allocating, _), (calling, donated) = parts
    shapes = [tuple(node.meta["val"].shape) for node in allocating.output_nodes()]
    assert inputs[0].shape not in shapes
    assert shapes.count((2, 1024, 64)) == 1, f"expected the allocation alone, got {shapes}"
    assert not any(is_allocation(node) for node in allocating.module.graph.nodes), "expected fills, got an allocation"
    assert sum(splits.is_view(node) for node in calling.module.graph.nodes) == 3
    assert len(donated) == 1


def test_decode_step_updates_its_caches_in_eager_mode_too() -> None:
    caches = [torch.zeros(models.CACHE_SHAPE) for _ in range(2)]
    block = models.Block().requires_grad_(False)
    x, position = torch.ones(models.BATCH, models.HIDDEN), torch.tensor([5])
    result = block.attend(x, position, *caches)
    assert result.shape == (models.BATCH, models.HIDDEN)
    for cache in caches:
        written = cache.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        assert written.tolist() == [5]

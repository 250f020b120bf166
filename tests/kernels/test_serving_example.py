"""The example that serves: prompts and single tokens in one step, over pages, against attention written out."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType
from typing import Any

import pytest
import torch

from tpu_lowering import aot, aot_compile
from tpu_lowering.ir import chips

PATH = pathlib.Path(__file__).parents[2] / "examples" / "ragged_serving.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ragged_serving", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written_out(example: ModuleType, model: Any, tokens: list[int]) -> torch.Tensor:
    """The logits of the last token of one sequence, computed all at once and without pages."""
    count, width = len(tokens), model.width
    angles = torch.arange(count)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    rotation = [torch.cat((of, of), -1)[:, None] for of in (angles.cos(), angles.sin())]
    rows = model.embedding(torch.tensor(tokens))
    for layer in model.layers:
        normed = layer.norms[0](rows)
        query = example.rotated(layer.query(normed).view(count, layer.heads, width), *rotation).transpose(0, 1)
        key, value = layer.key_and_value(normed).view(count, layer.key_heads, 2, width).unbind(2)
        key, value = example.rotated(key, *rotation).transpose(0, 1), value.transpose(0, 1)
        groups = layer.heads // layer.key_heads
        scores = query @ key.repeat_interleave(groups, 0).mT * width**-0.5
        hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
        seen = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value.repeat_interleave(groups, 0)
        rows = rows + layer.output(seen.transpose(0, 1).flatten(1))
        normed = layer.norms[1](rows)
        rows = rows + layer.down(torch.nn.functional.silu(layer.gate(normed)) * layer.up(normed))
    return model.head(rows)[-1]


def test_steps_equal_whole_sequences(example: ModuleType) -> None:
    """Three steps: four prompts; a token for each, but one sequence ends and another begins; a token for each."""
    torch.manual_seed(0)
    model, batch = example.Decoder().eval().requires_grad_(False), example.Batch()
    step = torch.compile(model, backend="helion_tpu", fullgraph=True)
    cache = model.pages(batch.sequences * batch.pages_of_each + 1)
    drawn = torch.Generator().manual_seed(0)
    sequences: list[list[int]] = [[] for _ in range(batch.sequences)]
    new = [torch.randint(0, 256, (length,), generator=drawn).tolist() for length in (9, 3, 14, 1)]
    for at in range(3):
        sequences = [[*before, *more] for before, more in zip(sequences, new, strict=True)]
        tokens, positions, slots, *others = batch.step(new)
        logits = step(tokens, positions, slots, cache, *others)
        for number, sequence in enumerate(sequences):
            expected = written_out(example, model, sequence)
            torch.testing.assert_close(logits[int(others[2][number + 1]) - 1], expected, rtol=1e-4, atol=1e-4)
        new = [[token] for token in range(at, at + batch.sequences)]
        if at == 0:
            batch.seen[1], sequences[1], new[1] = 0, [], torch.randint(0, 256, (11,), generator=drawn).tolist()


@pytest.mark.parametrize("target", ["tpu7x", "v6e"])
def test_the_cache_is_updated_where_it_lies(example: ModuleType, target: str) -> None:
    """The pages are aliased, and nothing of their size is made besides them."""
    model = example.Decoder(size=1024, layers=1, heads=8, key_heads=4).to(torch.bfloat16).eval().requires_grad_(False)
    cache, i32 = model.pages(2048), torch.int32
    tokens = [torch.zeros(64, dtype=torch.int64) for _ in range(3)]
    sequences = [torch.zeros(shape, dtype=i32) for shape in ((16,), (16, 32), (17,), (1,))]
    program = aot_compile(model, (*tokens, cache, *sequences), target=target)
    assert program.aliased_bytes >= cache[0].nbytes
    assert "ragged_paged_attention" in program.hlo
    assert program.temporary_bytes < cache[0].nbytes / 4


def test_it_is_one_program(example: ModuleType) -> None:
    model = example.Decoder(layers=1).eval().requires_grad_(False)
    arguments = example.Batch().step([[1, 2], [3], [4], [5, 6, 7]])
    cache = model.pages(17)
    captured = aot.capture(model, (*arguments[:3], cache, *arguments[3:]), {}, chips.find("tpu7x"), {}, ())
    assert [kernel.name for kernel in captured.source.kernels.values()].count("serving::ragged_attention") == 1
    assert captured.mutated_inputs

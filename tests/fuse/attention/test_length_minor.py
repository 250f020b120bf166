"""Rows that lie in memory element by element, the length last: the kernels' values and gradients, when, and the bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests.cases.case_kernels import exp_into
from tests.fuse.attention.functions import a_window, actions, causal, close, compiled, equal, kernels, operands, trained
from tpu_lowering import aot
from tpu_lowering.fuse.attention import plans
from tpu_lowering.fuse.attention.blocks import ROWS, packed
from tpu_lowering.fuse.attention.sites import Attention
from tpu_lowering.ir import chips

Layouts = tuple[bool, bool, bool]
bf16 = torch.bfloat16
TPU7X = chips.find("tpu7x")


def every_key(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query, key, value, enable_gqa=True)


def odd_length(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return sdpa(query[..., :197, :], key[..., :197, :], value[..., :197, :], enable_gqa=True)


def some_keys(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The padding of a batch: the last keys of the second sequence are nobody's."""
    mask = torch.arange(key.shape[-2]) < torch.tensor([256, 100]).view(2, 1, 1, 1)
    return sdpa(query, key, value, attn_mask=mask, enable_gqa=True)


FORMS = (every_key, odd_length, some_keys, causal, a_window)


@pytest.fixture(params=[(True, True, True), (False, True, True), (True, False, False)], ids=str)
def lying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Layouts:
    """Layouts that a plan chooses on the CPU too, which has none."""
    found: Layouts = request.param
    monkeypatch.setattr(plans, "length_minor_of", lambda site, chip: found)  # pyright: ignore[reportUnknownLambdaType]
    return found


@pytest.mark.sweep
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, 4), (bf16, 2)], ids=str)
def test_values_equal_eager(lying: Layouts, form: Callable[..., torch.Tensor], heads: int, dtype: torch.dtype) -> None:
    given = operands(dtype, heads)
    run, record = compiled(form)
    close(run(*given), form(*given))
    assert [action.reason.partition(",")[0] for action in actions(record)] == [
        "attention is the kernel splash_attention"
    ]


@pytest.mark.sweep
@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_eager(lying: Layouts, form: Callable[..., torch.Tensor]) -> None:
    record, pairs = trained(form, operands(key_heads=2))
    assert kernels(record) == ["splash_attention", "splash_attention_gradient"]
    equal(pairs, 2e-5)


def chosen(function: Callable[..., torch.Tensor], *given: torch.Tensor, chip: chips.Chip = TPU7X) -> list[Layouts]:
    """The layouts of every attention of a program for a chip."""
    found: list[Layouts] = []
    original = plans.length_minor_of

    def noted(site: Attention, chip: chips.Chip) -> Layouts:
        found.append(original(site, chip))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "length_minor_of", noted)
        aot.capture(function, given, {}, chip, {"fuse": "always"}, ())
    return found


def projected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    query, key, value = (x @ weight).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
    return sdpa(query, key, value)


def of_a_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    exp = torch.empty_like(key)
    exp_into(key, exp)
    return sdpa(query, exp, value)


def turned(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Arguments [batch, length, heads, width]."""
    return sdpa(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))


def heads_of(width: int, *, length: int = 1024) -> list[torch.Tensor]:
    return [torch.empty(2, 16, length, width, dtype=bf16) for _ in range(3)]


def test_narrow_arguments_lie_so() -> None:
    """A program's arguments lie in the order of dimensions that is padded least."""
    assert chosen(every_key, *heads_of(64)) == [(True, True, True)]
    assert chosen(every_key, *heads_of(192)) == [(True, True, True)]


def test_what_is_computed_for_it_lies_so() -> None:
    assert chosen(projected, torch.empty(2, 1024, 256, dtype=bf16), torch.empty(256, 3 * 4 * 64, dtype=bf16)) == [
        (True, True, True)
    ]


def test_rows_that_fill_lanes_lie_row_by_row() -> None:
    assert chosen(every_key, *heads_of(128)) == [ROWS]


def test_rows_that_fill_no_sublanes_lie_row_by_row() -> None:
    """The heads of one product, cut into 40 columns, would be copied."""
    assert chosen(every_key, *heads_of(40)) == [ROWS]


def test_results_of_kernels_lie_row_by_row() -> None:
    given = [rows.float() for rows in heads_of(64)]
    assert chosen(of_a_kernel, *given) == [(True, False, True)]


def test_a_transposed_argument_lies_so_too() -> None:
    """Of [batch, length, heads, width] 64 of 1024 is padded least."""
    given = [torch.empty(2, 1024, 16, 64, dtype=bf16) for _ in range(3)]
    assert chosen(turned, *given) == [(True, True, True)]


def test_arguments_that_lie_row_by_row_are_not_turned() -> None:
    """16 keys fill a sixth of the lanes that 96 elements fill."""
    assert chosen(every_key, *heads_of(96, length=16)) == [ROWS]


def test_a_cpu_has_no_layouts() -> None:
    assert chosen(every_key, *heads_of(64), chip=chips.CPU) == [ROWS]


@pytest.mark.parametrize(("width", "itemsize", "elements"), [(64, 2, 64), (72, 2, 80), (72, 4, 72), (8, 2, 16)])
def test_rows_fill_sublanes(width: int, itemsize: int, elements: int) -> None:
    assert packed(width, itemsize) == elements


def test_a_chip_reads_narrow_arguments_without_padding() -> None:
    """And writes the result with it: the kernel has that one row by row."""
    given = heads_of(64, length=2048)
    captured = aot.capture(every_key, given, {}, TPU7X, {}, ())
    moved = aot.compile_captured(captured, TPU7X, True, simulate=False).hbm_bytes
    operand = given[0].nbytes
    padded_result = 3 * 2 * operand
    assert moved <= 1.02 * (3 * operand + padded_result)


def test_a_chip_cuts_padded_rows_as_a_product_reads_them() -> None:
    """A layer of a ViT with its patches: rows of 197 tokens are not copied, and patches not in float32."""

    def layer(pixels: torch.Tensor, kernel: torch.Tensor, first: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        patches = F.conv2d(pixels, kernel, first, stride=16).flatten(2).mT
        tokens = torch.cat([first.expand(len(patches), 1, -1), patches], 1)
        query, key, value = ((tokens @ weight).unflatten(-1, (-1, 64)).transpose(1, 2) for weight in weights[:3])
        return sdpa(query, key, value).transpose(1, 2).flatten(2) @ weights[3]

    shapes = [(16, 3, 224, 224), (1024, 3, 16, 16), (1024,), (4, 1024, 1024)]
    given = tuple(torch.empty(shape, dtype=bf16) for shape in shapes)
    made = aot.compile_captured(aot.capture(layer, given, {}, TPU7X, {}, ()), TPU7X, True, simulate=False)
    assert any(one.opcode.startswith("custom-call") for one in made.entry_operations)
    assert not [one.name for one in made.entry_operations if one.opcode == "slice"]
    types = [made.hlo.partition(f"%{one.name} = ")[2][:4] for one in made.entry_operations if one.opcode == "reshape"]
    assert types == ["bf16"]

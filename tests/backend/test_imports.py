"""Arguments that come with every call are imported once; changes of them are seen."""

from __future__ import annotations

import gc
import weakref

import jax
import torch

from tpu_lowering import compat
from tpu_lowering.runtime.imported_arguments import Imports


def take(imports: Imports, tensor: torch.Tensor) -> jax.Array:
    with compat.enable_x64(True):
        return imports.take([tensor])[0]


def test_a_tensor_that_comes_again_is_kept() -> None:
    imports, weight = Imports(1), torch.ones(64, 64)
    take(imports, weight)
    second = take(imports, weight)
    assert take(imports, weight) is second


def test_a_tensor_that_comes_once_is_not_kept() -> None:
    imports, first = Imports(1), torch.ones(64, 64)
    alive = weakref.ref(first)
    take(imports, first)
    del first
    gc.collect()
    assert alive() is None
    assert float(take(imports, torch.zeros(64, 64))[0, 0]) == 0


def test_updates_in_place_and_new_memory_are_seen() -> None:
    imports, weight = Imports(1), torch.ones(64, 64)
    for _ in range(3):
        take(imports, weight)
    weight.fill_(2)
    assert float(take(imports, weight)[0, 0]) == 2
    weight.data = torch.full((64, 64), 3.0)
    assert float(take(imports, weight)[0, 0]) == 3
    weight.data = torch.full((8, 8), 4.0)
    assert take(imports, weight).shape == (8, 8)


def test_a_column_major_tensor_is_copied_anew() -> None:
    imports, weight = Imports(1), torch.ones(64, 32).T
    for _ in range(3):
        take(imports, weight)
    weight.fill_(2)
    assert float(take(imports, weight)[0, 0]) == 2


def test_memory_is_given_back_with_the_tensor() -> None:
    imports, weight = Imports(1), torch.ones(64, 64)
    for _ in range(3):
        take(imports, weight)
    del weight
    gc.collect()
    assert imports.slots == [None]


def test_parameters_changed_between_calls() -> None:
    model = torch.nn.Linear(8, 8)
    compiled, x = torch.compile(model, backend="helion_tpu", fullgraph=True), torch.randn(4, 8)
    with torch.no_grad():
        for step in range(4):
            torch.testing.assert_close(compiled(x), model(x))
            model.weight += step
        model.weight = torch.nn.Parameter(torch.randn(8, 8))
        torch.testing.assert_close(compiled(x), model(x))

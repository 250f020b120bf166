"""Arrays are made for places in memory, not for calls; what lies there is read anew by every call."""

from __future__ import annotations

import gc
import weakref

import jax
import torch

from tpu_lowering.runtime.imported_arguments import PLACES, Imports, Input


def take(imports: Imports, tensor: torch.Tensor) -> jax.Array:
    """Twice: an array is kept for a place that is seen again."""
    imports.take([tensor])
    return imports.take([tensor])[0]


def test_a_place_has_one_array() -> None:
    imports, weight = Imports([Input.of(torch.empty(64, 64))]), torch.ones(64, 64)
    take(imports, weight)
    first = take(imports, weight)
    assert first.unsafe_buffer_pointer() == weight.data_ptr()
    assert take(imports, weight) is first
    assert take(imports, weight.view(64, 64)) is first


def test_another_tensor_at_the_place_is_read() -> None:
    imports, weight = Imports([Input.of(torch.empty(64, 64))]), torch.ones(64, 64)
    take(imports, weight)
    first = take(imports, weight)
    with torch.no_grad():
        weight.fill_(2)
    assert take(imports, weight.detach()) is first
    assert float(first[0, 0]) == 2


def test_new_memory_is_seen() -> None:
    imports, weight = Imports([Input.of(torch.empty(64, 64))]), torch.ones(64, 64)
    take(imports, weight)
    weight.data = torch.full((64, 64), 3.0)
    assert float(take(imports, weight)[0, 0]) == 3


def test_places_are_few() -> None:
    imports, tensors = (
        Imports([Input.of(torch.empty(64, 64))]),
        [torch.full((64, 64), float(value)) for value in range(3 * PLACES)],
    )
    for _ in range(2):
        for value, tensor in enumerate(tensors):
            assert float(take(imports, tensor)[0, 0]) == value
            assert len(imports.places[0].known) <= PLACES


def test_memory_is_taken_in_its_own_order() -> None:
    columns = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    imports = Imports([Input.of(columns)])
    take(imports, columns)
    first = take(imports, columns)
    assert first.unsafe_buffer_pointer() == columns.data_ptr() and first.shape == (3, 2)
    assert take(imports, columns) is first
    assert float(take(imports, torch.arange(6.0).reshape(2, 3))[1, 0]) == 1


def test_a_tensor_in_another_order_is_copied_for_each_call() -> None:
    imports, memory = Imports([Input.of(torch.empty(64, 64))]), torch.arange(4096.0).reshape(64, 64)
    rows, columns = take(imports, memory), take(imports, memory.T)
    assert float(rows[0, 1]) == 1 and float(columns[0, 1]) == 64
    memory.fill_(2)
    assert float(take(imports, memory.T)[0, 1]) == 2
    assert float(take(imports, memory)[0, 1]) == 2


def test_a_lazy_sign_is_not_the_memory() -> None:
    imports, memory = Imports([Input.of(torch.empty(64))]), torch.ones(64, dtype=torch.complex64)
    imaginary = torch.view_as_real(memory).contiguous()[:, 0].contiguous()
    assert float(take(imports, imaginary)[0]) == 1
    assert float(take(imports, torch._neg_view(imaginary))[0]) == -1


def test_memory_that_xla_cannot_take_is_copied() -> None:
    imports, memory = Imports([Input.of(torch.empty(64))]), torch.arange(65.0)
    assert float(take(imports, memory[1:])[0]) == 1
    memory[1] = 7
    assert float(take(imports, memory[1:])[0]) == 7
    assert imports.places[0].known == {}


def test_no_tensor_is_kept() -> None:
    imports, weight = Imports([Input.of(torch.empty(64, 64))]), torch.ones(64, 64)
    alive = weakref.ref(weight)
    for _ in range(3):
        take(imports, weight)
    del weight
    gc.collect()
    assert alive() is None
    other = torch.zeros(64, 64)
    assert float(take(imports, other)[0, 0]) == 0


def test_nothing_in_an_empty_tensor() -> None:
    imports = Imports([Input.of(torch.empty(0, 3))])
    assert take(imports, torch.ones(0, 3)).shape == (0, 3)


def test_parameters_changed_between_calls() -> None:
    model = torch.nn.Linear(8, 8)
    compiled, x = torch.compile(model, backend="helion_tpu", fullgraph=True), torch.randn(4, 8)
    with torch.no_grad():
        for step in range(4):
            torch.testing.assert_close(compiled(x), model(x))
            model.weight += step
        model.weight = torch.nn.Parameter(torch.randn(8, 8))
        torch.testing.assert_close(compiled(x), model(x))


def test_memory_that_holds_other_values_is_copied() -> None:
    """A conjugate view lies where its base lies, with the same strides."""
    imports, base = Imports([Input.of(torch.empty(8, 8, dtype=torch.complex64))]), torch.full((8, 8), 1 + 2j)
    take(imports, base)
    assert complex(take(imports, base)[0, 0]) == 1 + 2j
    assert complex(take(imports, base.conj())[0, 0]) == 1 - 2j


def test_memory_of_negated_values_is_copied() -> None:
    base = torch.full((8, 8), 1 + 2j)
    imports, imaginary = Imports([Input.of(base.imag)]), torch.conj(base).imag
    assert imaginary.is_neg()
    take(imports, base.imag)
    assert float(take(imports, imaginary)[0, 0]) == -2

"""The harness notices what it should: wrong values, types, gradients and writes, and which sample has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.testing._internal.opinfo.core import SampleInput

from tests.global_state import state
from tests.opinfo import ties
from tests.opinfo.calls import Call, clone
from tests.opinfo.compare import Differs, Outcome, compare, execute, same
from tests.opinfo.expected import complaint
from tests.opinfo.tasks import Result, chosen_entries
from tests.opinfo.worker import with_state

X = torch.arange(6.0).reshape(2, 3)


def outcome(result: Any, gradients: Any = (), inputs: Any = ()) -> Outcome:
    return Outcome(result, list(gradients), list(inputs))


CALL = Call(torch.clone, (X.clone().requires_grad_(),), {})


@pytest.mark.parametrize(
    ("got", "code"),
    [
        (outcome(X + 1e-3), "result"),
        (outcome(X.double()), "result type"),
        (outcome(X.reshape(3, 2)), "result type"),
        (outcome([X, X]), "result"),
        (outcome(X, [X + 100]), "gradient"),
        (outcome(X, [X], [X + 1]), "input"),
        (outcome(torch.where(X == 2, torch.nan, X)), "result"),
    ],
)
def test_differences_are_named(got: Outcome, code: str) -> None:
    eager = outcome(X, [X] if got.gradients else [], [X] if got.inputs else [])
    with pytest.raises(Differs) as caught:
        compare(CALL, got, eager)
    assert caught.value.code == code


def test_equal_outcomes_pass() -> None:
    compare(CALL, outcome(X, [X, None], [X]), outcome(X.clone(), [X.clone(), None], [X.clone()]))


def test_an_error_that_eager_has_too_passes() -> None:
    """Where float32 cancels, a result may be off by as much as eager's own."""
    big = torch.tensor([1e4, 1.0, -1e4])
    call = Call(lambda x: x.sum() * 1e6, (big,), {})
    truth = big.double().sum().float() * 1e6
    compare(call, outcome(truth + 900), outcome(truth - 900))
    with pytest.raises(Differs):
        compare(call, outcome(truth + 1900), outcome(truth - 900))


def test_random_results_need_not_be_equal_but_alike() -> None:
    compare(CALL, outcome(X + 1), outcome(X), values=False)
    with pytest.raises(Differs):
        compare(CALL, outcome(X[0]), outcome(X), values=False)


def test_a_call_has_tensors_of_its_own() -> None:
    call = Call(torch.Tensor.add_, (X, 1), {})
    first, second = execute([call], None)[0], execute([call], None)[0]
    assert same(first, second)
    assert torch.equal(X, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(first.inputs[0], X + 1)


def test_copies_keep_strides_and_bits() -> None:
    for tensor in (X.t(), X[:, 1:], X[0].expand(4, 3), torch.complex(X, X).conj(), torch.complex(X, X).conj().imag):
        made = clone(tensor)
        assert torch.equal(made, tensor) and made.stride() == tensor.stride()
        assert (made.is_conj(), made.is_neg()) == (tensor.is_conj(), tensor.is_neg())
        assert made.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_complaints_go_both_ways() -> None:
    passes = Result("op", "item", "float32", samples=1)
    fails = dataclasses.replace(passes, code="TL303", failing=(0,))
    assert complaint(fails) == ""
    assert complaint(passes) == "expected TL303 (data_dependent), but it passes"
    assert complaint(dataclasses.replace(passes, name="add")) == ""
    assert complaint(dataclasses.replace(fails, name="add")).startswith("expected a pass, but it fails with TL303")


def test_positions_of_equal_elements_may_be_any_but_must_be_theirs() -> None:
    x = torch.tensor([2.0, 1.0, 1.0])
    sample = SampleInput(x, args=(0,))
    call = Call(torch.sort, (x, 0), {}, ties.determined("sort", sample))
    sort = [torch.tensor([1.0, 1.0, 2.0])]
    eager = outcome((*sort, torch.tensor([1, 2, 0])))
    compare(call, outcome((*sort, torch.tensor([2, 1, 0]))), eager)
    for wrong in ([1, 1, 0], [0, 1, 2]):
        with pytest.raises(Differs):
            compare(call, outcome((*sort, torch.tensor(wrong))), eager)
    assert ties.determined("sort", SampleInput(x, args=(0,), kwargs={"stable": True})) is None


def test_a_setting_that_was_left_changed_fails_the_entry() -> None:
    before, result = state(), Result("op", "add", "float32")
    assert with_state(result, before) == result
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert with_state(result, before) == dataclasses.replace(result, code="global", message="changed: threads")
    finally:
        torch.set_num_threads(threads)


def test_a_command_takes_names_of_entries_alone() -> None:
    assert list(chosen_entries("op", ["softmax"])) == ["softmax"]
    assert "softmax" in chosen_entries("op", None)
    with pytest.raises(SystemExit, match=r"^expected an entry of op_db, got 'foo'$"):
        chosen_entries("op", ["softmax", "foo"])

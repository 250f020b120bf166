"""Results in the memory of arguments and of each other: at eager's places, for every size; what is saved is not copied."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.property.memory_programs import relations
from tpu_lowering import compat, errors
from tpu_lowering.backend import helion_tpu
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.programs import Program
from tpu_lowering.normalise import aliases


def compiled(function: Callable[..., Any], dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(
        function, backend="helion_tpu", fullgraph=True, dynamic=dynamic, options={"verify": True, **options}
    )


def test_pieces_of_an_argument_lie_where_eager_has_them_at_every_size() -> None:
    run = compiled(lambda x: x.chunk(2))
    for size in (4, 6, 8, 9):
        x = torch.arange(float(size))
        assert [piece.tolist() for piece in run(x)] == [piece.tolist() for piece in x.chunk(2)]


VIEWS: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "chunk": lambda x, k: x.chunk(2),
    "split": lambda x, k: x.split(k),
    "narrow": lambda x, k: x.narrow(0, k, 2),
    "slice": lambda x, k: x[k:],
    "as_strided": lambda x, k: x.as_strided((2,), (1,), k),
    "slice of a slice": lambda x, k: x[k:][k - 1 :, 1:],
    "nothing": lambda x, k: x[:0],
    "transposed": lambda x, k: x[k:].t(),
    "other bits": lambda x, k: x[k:].view(torch.int32),
    "real of complex": lambda x, k: torch.view_as_real(x[k:].to(torch.complex64))[k - 1 :],
    "the argument and its part": lambda x, k: (x, x[k:]),
    "computed and its part": lambda x, k: (y := x * 2, y[k:], y[k]),
    "two parts of a computed one": lambda x, k: (y := x * 2)[k:].split(1) + y[:k].split(1),
    "mutated and a part of it": lambda x, k: (x.mul_(2), x[k:]),
    "a part that was mutated": lambda x, k: (x[k:].mul_(2), x[k - 1 :]),
}


@pytest.mark.sweep
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("function", VIEWS.values(), ids=VIEWS)
def test_views_at_symbolic_places(function: Callable[[torch.Tensor, int], Any], gradient: bool) -> None:
    """Arguments that start their memory, and arguments inside of something larger."""
    run = compiled(function, dynamic=True)
    for size, place, start in ((5, 1, 0), (7, 2, 0), (6, 3, 2)):
        got, wanted = (torch.ones(start + size, 4, requires_grad=gradient) for _ in range(2))
        mine, theirs = (got * 1)[start:], (wanted * 1)[start:]
        actual, expected = run(mine, place), function(theirs, place)
        results, eager = compat.tree_leaves([mine, actual]), compat.tree_leaves([theirs, expected])
        assert relations(results) == relations(eager)
        torch.testing.assert_close(results, eager)


@pytest.mark.parametrize("gradient", [False, True])
def test_an_update_of_a_result_shows_where_eager_shows_it(gradient: bool) -> None:
    """Results that need no gradient themselves share memory in a graph that records gradients too."""

    def function(buffer: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        new = buffer + 1
        return new, new[0], new.t(), w * 2, buffer.view(-1)

    run = compiled(function)
    for position in (0, 1, 2, 4):
        mine, theirs = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3)
        w = torch.ones(2, requires_grad=gradient)
        actual, expected = run(mine, w), function(theirs, w)
        actual[position].fill_(9)
        expected[position].fill_(9)
        torch.testing.assert_close((mine, *actual), (theirs, *expected))


def test_a_value_written_to_an_argument_and_returned_is_apart_from_it() -> None:
    """The graph is the same as where the argument itself is returned; only AOTAutograd knows."""

    def apart(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2
        x.copy_(y)
        return y, y[1:]

    x = torch.ones(3)
    y, part = compiled(apart)(x)
    x.fill_(7)
    assert y.tolist() == [2, 2, 2] and part.tolist() == [2, 2]
    assert part.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def test_two_arguments_swap_their_values() -> None:
    def swap(x: torch.Tensor, y: torch.Tensor) -> None:
        old = x.clone()
        x.copy_(y)
        y.copy_(old)

    x, y = torch.zeros(1 << 13), torch.ones(1 << 13)
    compiled(swap)(x, y)
    assert x[0] == 1 and y[0] == 0


def test_the_old_value_of_an_argument_is_a_copy() -> None:
    """The graph gives the argument; what it held before is asked for, and it is written to."""
    w = torch.ones(3, requires_grad=True)
    x = torch.full((3,), 2.0)

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x.clone() * w
        x.add_(1)
        return y

    compiled(function)(x, w).sum().backward()
    assert x.tolist() == [3, 3, 3] and w.grad is not None and w.grad.tolist() == [2, 2, 2]


REFUSED: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "elements of 2 bytes of torch.float32": lambda x, k: x[k:].view(torch.int16),
    "a lazy conjugate or negative of torch.complex64": lambda x, k: x[k:].conj(),
}


@pytest.mark.parametrize("got", REFUSED)
def test_views_that_torch_cannot_rebuild_are_refused(got: str) -> None:
    """At a place that depends on sizes; torch makes another tensor of them, or fails."""
    function, dtype = REFUSED[got], torch.complex64 if "complex" in got else torch.float32
    with pytest.raises(compat.BackendCompilerFailed) as caught:
        compiled(function, dynamic=True)(torch.ones(5, 4, dtype=dtype), 1)
    refused: Any = caught.value.inner_exception  # type: ignore[attr-defined]
    assert refused.code == "TL307" and refused.refusal.reason == (
        f"expected a view that torch can rebuild from its place in an argument, which depends on sizes here, got {got}"
    )
    torch.testing.assert_close(
        compiled(lambda x, k: function(x, k).clone(), dynamic=True)(torch.ones(5, 4, dtype=dtype), 1),
        function(torch.ones(5, 4, dtype=dtype), 1).clone(),
    )


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda x: (x * 2).t(),
    "channels last": lambda x: (x.view(1, 2, 2, 3) * 2).contiguous(memory_format=torch.channels_last),
    "part": lambda x: (x * 2)[:, 1:],
    "of another result": lambda x: (x * 2)[1],
}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("function", LAYOUTS.values(), ids=LAYOUTS)
def test_results_are_updated_in_place_with_a_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], recorded: bool
) -> None:
    x, w = torch.randn(4, 3, requires_grad=recorded), torch.ones((), requires_grad=True)
    y = compiled(function)(x)
    y.mul_(w)
    y.sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, function(x.detach()).sum())


def test_an_update_of_a_view_with_a_gradient_reaches_the_other_result() -> None:
    w = torch.tensor(3.0, requires_grad=True)
    y, part = compiled(lambda x: ((y := x * 2), y[1:]))(torch.ones(3))
    part.mul_(w)
    y.sum().backward()
    assert part._base is y and w.grad is not None and w.grad.item() == 4


def test_an_update_of_what_was_saved_is_noticed() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.exp()
        return y, y.detach()[1:]

    y, part = compiled(function)(torch.ones(3, requires_grad=True))
    part.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Listener:
    """An observer that keeps programs."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def stage(self, *_: Any) -> None: ...

    def acted(self, *_: Any) -> None: ...

    def compiled(self, program: Program, source: Source) -> None:
        self.programs.append(program)


def saved_by(y: torch.Tensor) -> set[int]:
    return {saved.data_ptr() for saved in y.grad_fn.saved_tensors}  # type: ignore[union-attr]


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "linear": lambda: torch.nn.Linear(8, 8),
    "norm": lambda: torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.GELU()),
    "encoder": lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("device", ["", "cpu:0"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_backward_is_given_the_parameters_themselves(model: Callable[[], torch.nn.Module], device: str) -> None:
    """No program gives an argument back, nor a view of one: all that is saved of parameters has their pointers."""
    made, x, listener = model(), torch.randn(2, 3, 8, requires_grad=True), Listener()
    torch._dynamo.reset()
    backend = functools.partial(helion_tpu, observers=(listener,), options={"device": device, "verify": True})
    run = torch.compile(made, backend=backend, fullgraph=True)
    y = run(x)
    weights = {parameter.data_ptr() for parameter in made.parameters() if parameter.ndim > 1}
    assert saved_by(y) >= weights
    for node in listener.programs[0].output_nodes():
        base = aliases.base_of(node)  # a batch whose copy is saved, as here, is copied in eager too
        assert base.op != "placeholder" or base.meta["val"].ndim == x.ndim
    y.sum().backward()
    eager = model()
    eager.load_state_dict(made.state_dict())
    eager(x).sum().backward()
    for mine, theirs in zip(made.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_gradients_never_share_memory() -> None:
    """Two parameters get views of one gradient: an update of one in place must not show in the other."""
    a, b = torch.ones(2, 2, requires_grad=True), torch.ones(4, requires_grad=True)
    (compiled(lambda a, b: a.view(4) + b)(a, b) * 2).sum().backward()
    assert a.grad is not None and b.grad is not None
    a.grad.zero_()
    assert b.grad.tolist() == [2, 2, 2, 2]


def test_verify_sees_a_view_at_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    right = aliases.Alias.output

    def wrong(self: aliases.Alias, *given: Any) -> Any:
        output = right(self, *given)
        assert output.place is not None
        return dataclasses.replace(output, place=dataclasses.replace(output.place, offset=0))

    monkeypatch.setattr(aliases.Alias, "output", wrong)
    with pytest.raises(compat.BackendCompilerFailed) as caught:
        compiled(lambda x: x[1:])(torch.ones(3))
    refused: Any = caught.value.inner_exception  # type: ignore[attr-defined]
    assert isinstance(refused, errors.TpuLoweringError) and refused.code == "TL401"
    assert "expected it where eager puts it in the memory that it shares, got MemoryPlace(" in str(refused)

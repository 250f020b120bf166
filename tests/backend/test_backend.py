"""The backend as users meet it: found by name, no trace left elsewhere, safe in threads, eager's layouts."""

from __future__ import annotations

import resource
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.backend.alone import STATE, run_alone


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)


def test_found_by_name_without_an_import() -> None:
    printed = run_alone(
        """
        import sys, torch
        assert "helion_tpu" in torch._dynamo.list_backends(exclude_tags=())
        assert not any(name.startswith("tpu_lowering") for name in sys.modules)
        print(torch.compile(lambda x: x + 1, backend="helion_tpu")(torch.ones(2)).tolist())
        """
    )
    assert printed.splitlines()[-1] == "[2.0, 2.0]"


def test_nothing_global_is_changed() -> None:
    """By importing, and by compiling: also with operands of 64 bits, a gradient, and after a refusal."""
    run_alone(
        STATE
        + textwrap.dedent(
            """
            import tpu_lowering
            for name in dir(tpu_lowering):
                getattr(tpu_lowering, name)
            import tpu_lowering.backend
            compare(before, state())
            run = torch.compile(lambda x, w: (x * 3, (w * 2).sum()), backend="helion_tpu")
            run(torch.ones(2, dtype=torch.int64), torch.ones(2, requires_grad=True))[1].backward()
            try:
                torch.compile(lambda x: x + 1, backend="helion_tpu", options={"wrong": 1})(torch.ones(2))
            except torch._dynamo.exc.BackendCompilerFailed:
                pass
            else:
                raise AssertionError("expected a refusal")
            compare(before, state())
            """
        )
    )


def test_threads() -> None:
    """Two threads, each with its own function, and both with one function and their own arguments."""
    first, second = (lambda x: (x * 2).sin() + x, lambda x: (x - 1).exp() * x)
    shared = compiled(lambda x: x.cos() * 3)
    shared(torch.ones(5))
    functions = {
        name: (torch.compile(eager, backend="helion_tpu"), eager) for name, eager in (("a", first), ("b", second))
    }
    failures: list[BaseException] = []

    def work(name: str, seed: int) -> None:
        run, eager = functions[name]
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(100):
                x = torch.randn(5, generator=generator)
                torch.testing.assert_close(run(x), eager(x))
                torch.testing.assert_close(shared(x), x.cos() * 3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name, seed)) for seed, name in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_memory_does_not_grow() -> None:
    """10,000 calls of 64 KiB results, which would be 625 MiB if each stayed."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y.add_(x)
        z = x * 2
        return z, z[0]

    run, x, y = compiled(function), torch.randn(128, 128), torch.zeros(128, 128)
    for _ in range(500):
        run(x, y)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        run(x, y)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


LAYOUTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "permuted": lambda x: (x + 1).permute(2, 0, 1),
    "of a permuted input": lambda x: x.permute(2, 0, 1) * 2,
    "channels last": lambda x: (x[None] * 2).contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x.sum(0, keepdim=True).expand(3, -1, -1),
    "one element everywhere": lambda x: x.sum().expand(2, 3),
    "with gaps": lambda x: (x + 1)[:, :, ::2],
    "part": lambda x: (x + 1)[1:],
    "empty": lambda x: x[:0] + 1,
    "numbers and nothing": lambda x: (x.shape[0], None, x + 1, [x * 2, {"a": x - 1}]),
}


@pytest.mark.parametrize("function", LAYOUTS.values(), ids=LAYOUTS)
def test_results_have_the_strides_of_eager(function: Callable[[torch.Tensor], Any]) -> None:
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(compiled(function)(x), function(x), check_stride=True)


def test_convolution_keeps_channels_last() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    result, wanted = compiled(convolution)(x), convolution(x)
    assert result.stride() == wanted.stride()
    torch.testing.assert_close(result, wanted)


def test_results_are_writable_and_alias_only_what_eager_aliases() -> None:
    """Writing to a result shows in the input where it is the input or a view of it, and nowhere else."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.clone(), x * 1, x.t().clone(), x, x.view(-1), x + 0

    for position in range(6):
        x = torch.arange(6.0).view(2, 3)
        y = x.clone()
        mine, theirs = compiled(function)(x), function(y)
        mine[position].fill_(9)
        theirs[position].fill_(9)
        torch.testing.assert_close((x, *mine), (y, *theirs))


def test_constants_of_the_graph_are_not_written_through_results() -> None:
    constant = torch.ones(3)

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return constant.clone(), torch.tensor([1.0, 2.0]) + x[:2] * 0

    run = compiled(function)
    for result in run(torch.zeros(3)):
        result.fill_(5)
    first, second = run(torch.zeros(3))
    assert constant.tolist() == first.tolist() == [1, 1, 1] and second.tolist() == [1, 2]

"""One process of a test: compiles a function with a cache folder, prints results and how often XLA compiled.

``python -m tests.runtime.cache.child CASE FOLDER [OPTION=VALUE ...]``; prints one line of JSON. Where
torch's precompilation is on, what it found is kept for later processes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import torch
from jax.experimental import pallas as pl
from torch._dynamo.utils import counters

import tpu_lowering

compilations: list[str] = []


def _listen(event: str, duration: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


def inference(run: Callable[..., Any]) -> list[torch.Tensor]:
    x, y = torch.randn(4, 8), torch.randn(8, 3)
    with torch.inference_mode():
        return [run(lambda x, y: torch.softmax(x @ y, -1) + torch.tensor([1.0, 2.0, 3.0]) * torch.tensor(2.5))(x, y)]


def views(run: Callable[..., Any]) -> list[torch.Tensor]:
    """A mutated input, results that share memory, a result that is an input, a number and None."""
    x = torch.randn(4, 8)

    def function(x: torch.Tensor) -> tuple[Any, ...]:
        x.add_(1)
        y = x * 2
        return y, y[1:], x, x.shape[0], None

    whole, part, same, number, nothing = run(function)(x)
    part.zero_()
    assert same is x and number == 4 and nothing is None
    return [x, whole, part]


def training(run: Callable[..., Any]) -> list[torch.Tensor]:
    """Two gradients through one graph, with running statistics."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    compiled = run(model)
    result = compiled(torch.randn(5, 8)).square().sum()
    result.backward(retain_graph=True)
    result.backward()
    return [result.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def factorised(run: Callable[..., Any]) -> list[torch.Tensor]:
    """A call to LAPACK."""
    x = torch.randn(4, 4, dtype=torch.float64)
    return [run(lambda x: torch.linalg.inv(x @ x.T + torch.eye(4)))(x)]


def largest(run: Callable[..., Any]) -> list[torch.Tensor]:
    """A call into XLA's own runtime, by its name."""
    return list(run(lambda x: tuple(torch.topk(x.sin(), 3)))(torch.randn(4, 32)))


def updates(run: Callable[..., Any]) -> list[torch.Tensor]:
    """A buffer that is updated in place."""
    cache, rows = torch.zeros(64, 256), torch.randn(1, 256)

    def function(cache: torch.Tensor, at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, at, rows)
        return cache.sum(0)

    compiled = run(function)
    with torch.inference_mode():
        return [*(compiled(cache, torch.tensor([at]), rows) for at in range(3)), cache]


def dynamic(run: Callable[..., Any]) -> list[torch.Tensor]:
    compiled = run(lambda x: x.cos() * x.shape[0], dynamic=True)
    return [compiled(torch.randn(size, 3)) for size in (4, 6)]


def plain(run: Callable[..., Any]) -> list[torch.Tensor]:
    return [*inference(run), *views(run), *dynamic(run)]


FACTOR = 1


@tpu_lowering.kernel_op("cache_child::scale", mutates_args=("out",))
def scale(x: torch.Tensor, out: torch.Tensor) -> None:
    """out = FACTOR * x"""

    def body(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] * FACTOR

    return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype))(x)


def kernel(run: Callable[..., Any]) -> list[torch.Tensor]:
    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        scale(x, out)
        return out + 1

    return [run(function)(torch.randn(4, 8))]


@tpu_lowering.kernel_op(
    "cache_child::cube",
    setup_context=lambda context, inputs, output: context.save_for_backward(inputs[0]),
    backward=lambda context, gradient: gradient * FACTOR * context.saved_tensors[0] ** 2,
)
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3  # type: ignore[no-any-return]


def gradient(run: Callable[..., Any]) -> list[torch.Tensor]:
    """A kernel with a gradient that reads a global."""
    x = torch.randn(4, 8, requires_grad=True)
    run(lambda x: cube(x).sum())(x).backward()
    assert x.grad is not None
    return [x.grad]


CASES = {
    case.__name__: case
    for case in (plain, inference, views, largest, updates, dynamic, training, factorised, kernel, gradient)
}


def main(case: str, folder: str, *settings: str) -> None:
    options: dict[str, Any] = {"cache": folder}
    read = globals()
    if case == "launch":  # to import Helion takes seconds
        from tests.runtime.cache import launches

        CASES[case], read = launches.launch, vars(launches)
    for setting in settings:
        name, _, value = setting.partition("=")
        if name == "FACTOR":
            read[name] = int(value)
        elif name == "scale_into":
            read[name] = read[value]
        else:
            options[name] = {"True": True, "False": False}.get(value, value)
    jax.monitoring.register_event_duration_secs_listener(_listen)

    def run(function: Any, **more: Any) -> Any:
        return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options, **more)

    torch.manual_seed(0)
    results = [value.tolist() for value in CASES[case](run)]
    if torch._dynamo.config.caching_precompile:
        torch.compiler.save_cache_artifacts()
    graphs = counters["stats"]["unique_graphs"]
    print(json.dumps({"results": results, "compilations": len(compilations), "graphs": graphs}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A process from its start to its first result: ``python -m bench.cpu.first_result <case> <backend>``.

It writes one line of JSON: ``total``, seconds from before torch is imported to the first result, and ``first``, the
same without imports and without making the model and its inputs. Where torch's precompilation is on, what it found is
kept for later processes, after that.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

KERNEL = "kernel"
SMALL = "one_op"
TRAINING = " training"
IMPORTS = ("torch", "torch._dynamo", "torch._inductor.compile_fx", "jax", "tpu_lowering.backend", "bench.cpu.sides")
MODULES = {KERNEL: ("bench.cpu.kernels",), SMALL: ()}
"""What is imported for a case; for a model, the suite."""


def main(case: str, backend: str) -> dict[str, float]:
    """Measures in this process, which must have imported nothing yet."""
    began = time.perf_counter()
    for name in (*IMPORTS, *MODULES.get(case, ("bench.zoo",))):
        importlib.import_module(name)
    trained = case.endswith(TRAINING)
    function, arguments = _built(case, backend, trained)
    ready = time.perf_counter()
    import torch

    with torch.inference_mode(not trained):
        result = torch.compile(function, backend=backend, fullgraph=True)(*arguments)
        if trained:
            result[0].backward()  # the loss
    ended = time.perf_counter()
    if torch._dynamo.config.caching_precompile:
        torch.compiler.save_cache_artifacts()
    return {"total": ended - began, "first": ended - ready}


def _built(case: str, backend: str, trained: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if case == KERNEL:
        return kernel(backend)
    return small() if case == SMALL else model(case.removesuffix(TRAINING), trained)


def one_op(x: Any) -> Any:
    return x.sin() * 2 + 1


def small() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A program of one loop, and its input."""
    import torch

    return one_op, (torch.ones(8, 128),)


def kernel(backend: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The kernel ``welford``, or for another backend than ours its plain form, and inputs."""
    from bench.cpu.kernels import CASES

    case = CASES["welford"]
    return case.model if backend == "helion_tpu" else case.reference, tuple(case.inputs(case.shapes))


def model(name: str, trained: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A model of the suite, made larger, and inputs."""
    import torch

    from bench import zoo
    from bench.cpu.models import enlarge, longer_inputs

    torch.manual_seed(0)
    chosen = zoo.MODELS[name]
    return chosen.step, (enlarge(chosen.build()).train(trained), longer_inputs(chosen))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

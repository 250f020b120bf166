"""What a call costs beside its arithmetic: a kernel of one block, an operator or two, three small layers at batch 1,
and a training step of forty.

``bare`` is the least that a torch user of a jitted JAX function pays: the activations come in by DLPack and the
result goes back so; parameters are JAX arrays already.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import nn

from bench.compile_time import shift_into
from bench.cpu import sides

CALLS = 300  # a sample
WIDTH = 256
SIDES = ("ours", "bare", "jax", "eager", "inductor")


@dataclasses.dataclass(frozen=True)
class Case:
    """One function.

    Attributes:
        model: takes the activations; calls a kernel, where there is one.
        reference: the same in plain PyTorch.
        plain: the same in JAX; takes the activations, then the parameters.
        shape: of the activations, float32.
        parameters: of the plain form.
    """

    model: Callable[[torch.Tensor], torch.Tensor]
    reference: Callable[[torch.Tensor], torch.Tensor]
    plain: Callable[..., jax.Array]
    shape: tuple[int, int]
    parameters: Sequence[torch.Tensor] = ()


def shifted(x: torch.Tensor) -> torch.Tensor:
    """x + 1 by a Helion kernel, whose blocks are [8, 128]."""
    out = torch.empty_like(x)
    shift_into(x, out)
    return out


def mlp_of(x: jax.Array, *parameters: jax.Array) -> jax.Array:
    """Three layers, ReLU between them; weights [out, in] and biases take turns."""
    weights, biases = parameters[::2], parameters[1::2]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        x = x if index == len(weights) - 1 else jnp.maximum(x, 0)
    return x


def one_block() -> Case:
    return Case(shifted, lambda x: x + 1, lambda x: x + 1, (8, 128))


def mlp() -> Case:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
    model = nn.Sequential(*layers).eval()
    parameters = [parameter.detach() for parameter in model.parameters()]

    def called(x: torch.Tensor) -> torch.Tensor:
        return model(x)

    return Case(called, called, mlp_of, (1, WIDTH), parameters)


def one_op() -> Case:
    def called(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * 2 + 1

    return Case(called, called, lambda x: jnp.sin(x) * 2 + 1, (8, 128))


CASES: dict[str, Callable[[], Case] | None] = {"one_op": one_op, "one_block": one_block, "mlp": mlp, "linear_40": None}
"""None: measured by ``measure_training``."""

LAYERS, NARROW, BATCH = 40, 32, 4


def measure(name: str, rounds: int, calls: int = CALLS) -> dict[str, Any]:
    """The entry of one case; seconds of its sides are those of one call."""
    made = CASES[name]
    if made is None:
        return measure_training(rounds, max(1, calls // 10))
    case = made()
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1))
    builders = {side: functools.partial(build, case, side, x) for side in SIDES}
    measured = sides.Sides(builders).measure(rounds, calls)
    return {"sides": measured, "note": f"float32 {list(case.shape)}, {calls} calls a sample"}


def measure_training(rounds: int, calls: int) -> dict[str, Any]:
    """The entry of forward and backward of many small layers."""
    torch.manual_seed(0)
    parts = [part for _ in range(LAYERS) for part in (nn.Linear(NARROW, NARROW), nn.Tanh())]
    model, x = nn.Sequential(*parts), torch.randn(BATCH, NARROW)
    backends = {"ours": "helion_tpu", "inductor": "inductor", "eager": "eager"}
    builders = {side: functools.partial(build_training, model, x, backend) for side, backend in backends.items()}
    note = f"{LAYERS} layers of {NARROW}, batch {BATCH}, forward and backward, {calls} calls a sample"
    return {"sides": sides.Sides(builders).measure(rounds, calls), "note": note}


def build_training(model: nn.Module, x: torch.Tensor, backend: str) -> Callable[[], Any]:
    """A step of one side; its gradients have been compared with eager's."""
    with torch.inference_mode(False):
        run = copy.deepcopy(model)
    if backend != "eager":
        run = torch.compile(run, backend=backend, fullgraph=True)

    def step() -> list[torch.Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            run.zero_grad()
            run(x).sum().backward()
        return [parameter.grad for parameter in run.parameters() if parameter.grad is not None]

    with torch.inference_mode(False), torch.enable_grad():
        expected = list(torch.autograd.grad(model(x).sum(), list(model.parameters())))
    torch.testing.assert_close(step(), expected, rtol=1e-4, atol=1e-5)
    return step


def build(case: Case, side: str, x: torch.Tensor) -> Callable[[], Any]:
    """A call of one side; its result has been compared with the reference's."""
    check = sides.closeness(case.reference(x), 1e-5, 1e-5)
    if side == "jax":
        return sides.jitted(case.plain, [x, *case.parameters], check)
    if side == "bare":
        function = jax.jit(case.plain)
        parameters = [jax.dlpack.from_dlpack(parameter) for parameter in case.parameters]

        def bare(x: torch.Tensor) -> torch.Tensor:
            return torch.from_dlpack(jax.block_until_ready(function(jax.dlpack.from_dlpack(x), *parameters)))

        return sides.called(bare, [x], check)
    if side == "eager":
        return sides.called(case.reference, [x], check)
    chosen, backend = (case.model, "helion_tpu") if side == "ours" else (case.reference, "inductor")
    return sides.called(sides.compiled(chosen, backend), [x], check)

"""What a call costs beside its arithmetic: a kernel of one block, and three small layers at batch 1.

``bare`` is the least that a torch user of a jitted JAX function pays: the activations come in by DLPack and the
result goes back so; parameters are JAX arrays already.
"""

from __future__ import annotations

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


CASES = {"one_block": one_block, "mlp": mlp}


def measure(name: str, rounds: int, calls: int = CALLS) -> dict[str, Any]:
    """The entry of one case; seconds of its sides are those of one call."""
    case = CASES[name]()
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1))
    builders = {side: functools.partial(build, case, side, x) for side in SIDES}
    measured = sides.Sides(builders).measure(rounds, calls)
    return {"sides": measured, "note": f"float32 {list(case.shape)}, {calls} calls a sample"}


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

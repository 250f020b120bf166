"""Random numbers as values: the one node that draws them, the keys it draws from, and the inputs that are drawn.

A program holds no generator. It takes a key, two ``uint32`` that its caller draws for each call, and every node
that draws takes a key of its own, derived from that one and the node's number::

    %key_1: u32[2] = derive_key(%key, 0)
    %bernoulli: f32[4, 8] = draw(aten.bernoulli.p, %key_1, like(f32, (4, 8), (8, 1)), 0.9)

So a draw is a pure function of its operands, like every other node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.ir import arrays
from tpu_lowering.ir.types import element_type

aten = compat.aten

KEY_BYTES = 8

# Operators that overwrite a tensor with values drawn for its shape, and the form that eager runs in place. The form
# matters: eager draws in the order of the tensor's memory.
FILLS: dict[compat.OpOverload, compat.OpOverload] = {
    aten.bernoulli.p: aten.bernoulli_.float,
    aten.cauchy.default: aten.cauchy_.default,
    aten.exponential.default: aten.exponential_.default,
    aten.geometric.default: aten.geometric_.default,
    aten.log_normal.default: aten.log_normal_.default,
    aten.normal_functional.default: aten.normal_.default,
    getattr(aten.random, "from"): getattr(aten.random_, "from"),
    aten.uniform.default: aten.uniform_.default,
}


@dataclasses.dataclass(frozen=True, repr=False)
class Like:
    """A tensor that an operator is given for its shape, strides and dtype alone."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(value: torch.Tensor) -> Like:
        return Like(tuple(value.shape), tuple(value.stride()), value.dtype)

    def empty(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="cpu")

    def __repr__(self) -> str:
        """As Python would write it: torch.fx compiles the text of a graph."""
        return f"like({element_type(self.dtype)}, {self.shape}, {self.stride})"


def draw(overload: compat.OpOverload, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """The graph's node for a random operator.

    Run on tensors, as the reference interpreter does, it is a pure function of the key too, but draws other
    values than the program does.

    Args:
        overload: the operator.
        key: uint32 [2].
        args, kwargs: the operator's arguments, ``Like`` in place of tensors whose contents do not matter.
    """
    if overload is aten.poisson.default:  # eager refuses rates that verifying may draw
        args = (args[0].nan_to_num().abs(),)
    return run(overload, args, kwargs, None if arrays.is_fake(key) else torch.Generator().manual_seed(_number(key)))


def run(
    overload: compat.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], generator: torch.Generator | None
) -> Any:
    """Runs a random operator in eager torch; from torch's own generator where none is given."""
    given = [value.empty() if isinstance(value, Like) else value for value in args]
    if generator is None:
        return FILLS.get(overload, overload)(*given, **kwargs)
    drawn = aten.randperm.generator if overload is aten.randperm.default else FILLS.get(overload, overload)
    return drawn(*given, **kwargs, generator=generator)


def derive_key(key: torch.Tensor, index: int) -> torch.Tensor:
    """A node's own key, uint32 [2], from the program's and the node's number."""
    if arrays.is_fake(key):
        return torch.empty_like(key)
    mixed = np.random.SeedSequence([*key.tolist(), index]).generate_state(KEY_BYTES // 4)
    return torch.from_numpy(mixed)


def pack_key(key: torch.Tensor, size: int) -> torch.Tensor:
    """A key as bytes with zeros behind, uint8 [size]: in place of the state that a generator would have."""
    rest = torch.zeros(size - KEY_BYTES, dtype=torch.uint8, device=key.device)
    return torch.cat((key.view(torch.uint8), rest))


def unpack_key(state: torch.Tensor) -> torch.Tensor:
    """The key, uint32 [2], that ``pack_key`` made bytes of."""
    return state[:KEY_BYTES].clone().view(torch.uint32)


def _number(key: torch.Tensor) -> int:
    high, low = key.tolist()
    return high << 32 | low


def state_size() -> int:
    """Bytes of the state of torch's generator for the CPU."""
    return torch.get_rng_state().numel()


# What a program takes that its caller's caller knows nothing of -----------------------------------------
@dataclasses.dataclass(frozen=True)
class Key:
    """A program's key, uint32 [2], drawn from torch's generator for the CPU."""

    name: str = "key"

    def take(self, arguments: Sequence[Any]) -> torch.Tensor:
        """Draws it. The generator advances, so that calls differ; ``torch.manual_seed`` repeats them."""
        return torch.randint(0, 1 << 32, (2,), dtype=torch.int64, device="cpu").to(torch.uint32)


@dataclasses.dataclass(frozen=True)
class GeneratorState:
    """The state of torch's generator for the CPU, uint8 [n], that a backward draws the same values from again."""

    name: str = "generator_state"

    def take(self, arguments: Sequence[Any]) -> torch.Tensor:
        """Reads it."""
        return torch.get_rng_state()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Values that the operator itself draws in eager torch, before the program runs.

    Attributes:
        overload: the operator.
        args: its arguments, of which no tensor's contents matter.
        dtype: keyword argument of an operator that has no ``Like``.
        state: position of the caller's argument that holds the generator's state to draw from; None for the
            generator itself.
    """

    overload: compat.OpOverload
    args: tuple[Any, ...]
    dtype: torch.dtype | None = None
    state: int | None = None

    @property
    def name(self) -> str:
        return str(self.overload)

    def take(self, arguments: Sequence[Any]) -> torch.Tensor:
        """Draws them."""
        generator = None
        if self.state is not None:
            generator = torch.Generator()
            generator.set_state(arguments[self.state])
        return run(self.overload, self.args, {} if self.dtype is None else {"dtype": self.dtype}, generator)


DrawnInput = Key | GeneratorState | Drawn

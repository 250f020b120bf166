"""Random operators taken apart the way eager's CPU kernels compute them: what is drawn, and what is done with it.

What is left to draw depends on shapes and numbers alone, so it can be drawn by eager torch before the program runs,
with the same values in the same order. Sources: ``aten/src/ATen/native/Dropout.cpp``, ``Distributions.cpp`` and
``cpu/MultinomialKernel.cpp`` of torch. Torch's own decompositions of these draw other values than eager does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tpu_lowering import compat

aten = compat.aten


def _drawn_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype that uniform numbers are drawn in, to compare them with numbers of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def native_dropout(input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """input * (kept / (1 - p)), and the bool ``kept``."""
    if train is False or p == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    if p == 1:
        return input * 0, torch.zeros_like(input, dtype=torch.bool)
    kept = aten.bernoulli.p(torch.empty_like(input), 1 - p)
    return input * (kept / (1 - p)), kept.to(torch.bool)


def bernoulli(self: Tensor) -> Tensor:
    """1 with the probability that ``self`` holds, else 0."""
    return bernoulli_tensor(self, self)


def bernoulli_tensor(self: Tensor, p: Tensor) -> Tensor:
    """1 with probability ``p``, else 0, in the shape and dtype of ``self``."""
    if not p.dtype.is_floating_point:
        return NotImplemented  # an error in eager
    drawn = torch.rand(self.shape, dtype=_drawn_in(p.dtype), device=self.device)
    return (drawn < p).to(self.dtype)


def normal_tensor_tensor(mean: Tensor, std: Tensor) -> Tensor:
    """mean + std * z, of z with mean 0 and standard deviation 1."""
    shape = torch.broadcast_shapes(mean.shape, std.shape)
    return _standard_normal(mean.new_empty(shape) if mean.shape != shape else torch.empty_like(mean)) * std + mean


def normal_tensor_float(mean: Tensor, std: float = 1.0) -> Tensor:
    """mean + std * z, of z with mean 0 and standard deviation 1."""
    return _standard_normal(torch.empty_like(mean)) * std + mean


def normal_float_tensor(mean: float, std: Tensor) -> Tensor:
    """mean + std * z, of z with mean 0 and standard deviation 1."""
    return _standard_normal(torch.empty_like(std)) * std + mean


def _standard_normal(empty: Tensor) -> Tensor:
    return aten.normal_functional.default(empty, 0.0, 1.0)


def multinomial(self: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
    """Indices drawn with probabilities in proportion to ``self``, [n] or [m, n]; int64."""
    if replacement and num_samples != 1:
        return _with_replacement(self, num_samples)
    race = self / aten.exponential.default(torch.empty_like(self), 1.0)
    if num_samples == 1:
        return race.argmax(-1, keepdim=True)
    return race.topk(num_samples)[1]


def _with_replacement(self: Tensor, count: int) -> Tensor:
    """The first category whose cumulative probability reaches a uniform number."""
    total = self.to(_drawn_in(self.dtype)).cumsum(-1)
    reached = (total / total[..., -1:])[..., :-1].contiguous()  # the last category takes what is left
    drawn = torch.rand((*self.shape[:-1], count), dtype=torch.float64, device=self.device)
    return torch.searchsorted(reached.to(torch.float64), drawn)


def _from_own_generator(decompose: Callable[..., Any]) -> Callable[..., Any]:
    """Leaves a call with a generator whole, so that it is refused where graphs are checked."""

    @functools.wraps(decompose)
    def unless_given(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return NotImplemented if generator is not None else decompose(*args, **kwargs)

    return unless_given


DECOMPOSITIONS: dict[compat.OpOverload, Callable[..., Any]] = {
    aten.native_dropout.default: native_dropout,
    aten.bernoulli.default: _from_own_generator(bernoulli),
    aten.bernoulli.Tensor: _from_own_generator(bernoulli_tensor),
    aten.multinomial.default: _from_own_generator(multinomial),
    aten.normal.Tensor_Tensor: _from_own_generator(normal_tensor_tensor),
    aten.normal.Tensor_float: _from_own_generator(normal_tensor_float),
    aten.normal.float_Tensor: _from_own_generator(normal_float_tensor),
}

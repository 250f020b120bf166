"""Sample inputs of torch's databases as calls that can be made again and again on tensors of their own."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from tests.opinfo import ties


def seed(number: int = 0) -> None:
    """Seeds the generators that sample functions draw from."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of its own, with the same strides, offset and conjugate and negative bits; a leaf."""
    if tensor.layout != torch.strided:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)
    if tensor.is_conj():
        made = clone(tensor.detach().conj()).conj()
    elif tensor.is_neg():
        made = torch._neg_view(clone(torch._neg_view(tensor.detach())))
    else:
        storage = tensor.detach().untyped_storage().clone()
        made = torch.empty(0, dtype=tensor.dtype)
        made.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    return made.detach().requires_grad_(tensor.requires_grad)


@dataclasses.dataclass(frozen=True)
class Instance:
    """A call on tensors of its own: ``function(*args, **kwargs)``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[torch.Tensor]:
        """What the call reads: its arguments, and parameters and buffers of a module."""
        own = [*self.function.parameters(), *self.function.buffers()] if is_module(self.function) else []
        return [*tensors_of((self.args, self.kwargs)), *own]


@dataclasses.dataclass(frozen=True)
class Call:
    """One sample.

    Attributes:
        function: an operator, or a module, which is copied for each instance.
        args, kwargs: its arguments.
        determined: gives the part of a result that mathematics determines (the absolute values of
            eigenvectors, say), as torch's database says.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    determined: Callable[[Any], Any] = lambda result: result

    def fresh(self, to: torch.dtype | None = None) -> Instance:
        """An instance; with ``to``, its floating tensors in that dtype (complex ones as wide)."""
        made: dict[int, torch.Tensor] = {}

        def fresh_tensor(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = widened(clone(tensor), to)
            return made[id(tensor)]

        args, kwargs = pytree.tree_map_only(torch.Tensor, fresh_tensor, (self.args, self.kwargs))
        if not is_module(self.function):
            return Instance(self.function, args, kwargs)
        module = copy.deepcopy(self.function)
        return Instance(module if to is None else module.to(to), args, kwargs)


def widened(tensor: torch.Tensor, to: torch.dtype | None) -> torch.Tensor:
    if to is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.detach().to(to.to_complex() if tensor.is_complex() else to).requires_grad_(tensor.requires_grad)


def is_module(function: Any) -> bool:
    return isinstance(function, torch.nn.Module)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def operator_calls(op: Any, dtype: torch.dtype, grad: bool) -> Iterator[Call]:
    """The calls of an entry of ``op_db``."""
    seed()
    for sample in op.sample_inputs("cpu", dtype, requires_grad=grad):
        determined = ties.determined(op.name, sample) or sample.output_process_fn_grad
        yield Call(op.op, (sample.input, *sample.args), dict(sample.kwargs), determined)


def module_calls(info: Any, dtype: torch.dtype, grad: bool) -> Iterator[Call]:
    """The forward calls of an entry of ``module_db``, in training mode and, where it differs, in evaluation."""
    for training in (True, False) if info.train_and_eval_differ else (True,):
        seed()
        inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=grad, training=training)
        for given in inputs:
            made = info.module_cls(*given.constructor_input.args, **given.constructor_input.kwargs)
            made = made.to(dtype).train(training)
            arguments = given.forward_input
            if arguments is None:
                continue
            if info.is_lazy:
                made(*arguments.args, **arguments.kwargs)
            yield Call(made.requires_grad_(grad), tuple(arguments.args), dict(arguments.kwargs))

"""Entries of ``optim_db``: two compiled steps against two eager ones, parameters and states."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs

from tests.opinfo.calls import seed
from tests.opinfo.compare import compare_leaf
from tests.opinfo.tasks import Task

SHAPES = ((4, 3), (2, 4), (2,))  # weights of two layers and a bias
STEPS = 2


@dataclasses.dataclass(frozen=True)
class Sample:
    """One configuration of an optimizer.

    Attributes:
        number: its place among the configurations of the entry.
        info: the entry.
        settings: keyword arguments of the optimizer.
    """

    number: int
    info: Any
    settings: dict[str, Any]
    random: bool = False

    def check(self, backend: str) -> None:
        """Raises unless parameters and states after two steps are eager's."""
        got, eager = self.run(backend), self.run(None)
        assert len(got) == len(eager)
        for index, (x, y) in enumerate(zip(got, eager, strict=True)):
            compare_leaf("state", x, y, True, lambda index=index: self.run(None, torch.float64)[index])

    def run(self, backend: str | None, dtype: torch.dtype = torch.float32) -> Sequence[Any]:
        """Parameters and states after two steps; ``backend`` None is eager."""
        torch._dynamo.reset()
        parameters = self._parameters(dtype)
        optimizer = self.info.optim_cls(parameters, **copy.deepcopy(self.settings))
        step = optimizer.step if backend is None else torch.compile(optimizer.step, backend=backend)
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            for parameter in parameters:
                gradient = torch.randn(parameter.shape, generator=generator).to(dtype)
                parameter.grad = gradient.to_sparse() if self.info.only_supports_sparse_grads else gradient
            if self.info.step_requires_closure:
                step(lambda: _closure(parameters))
            else:
                step()
        state = [optimizer.state[parameter] for parameter in parameters if parameter in optimizer.state]
        return pytree.tree_leaves(([x.detach().clone() for x in parameters], [dict(x) for x in state]))

    def _parameters(self, dtype: torch.dtype) -> list[torch.nn.Parameter]:
        seed()
        shapes = SHAPES[:2] if self.info.optim_cls is torch.optim.Muon else SHAPES  # Muon takes matrices alone
        return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def _closure(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """A loss, with its gradients set."""
    for parameter in parameters:
        parameter.grad = None
    loss = torch.stack([(parameter**2).sum() for parameter in parameters]).sum()
    loss.backward()
    return loss


def samples(task: Task, info: Any) -> list[Sample]:
    """The configurations of an entry, with foreach and fused on and off.

    Not ``differentiable``: such a step writes to leaves that require gradients, which eager refuses.
    """
    inputs = _get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float32, info, skip=("differentiable",))
    made = [Sample(number, info, dict(given.kwargs)) for number, given in enumerate(inputs)]
    return made[: task.samples or None]

"""A mixture of experts, an expert a rank: words travel to their expert and back, in one program a direction.

    torchrun --nproc-per-node 4 examples/expert_parallel.py

Every rank sends each expert the same number of words, its capacity; words beyond it keep their value. On a pod start
one process a chip with the same command on every host.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional


class Experts(nn.Module):
    """Words [count, width] of this rank through the expert that the router gives each."""

    def __init__(self, width: int, experts: int, capacity: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)  # of this rank's expert
        self.experts, self.capacity = experts, capacity

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        weights = self.router(words).softmax(-1)
        weight, expert = weights.max(-1)
        chosen = nn.functional.one_hot(expert, self.experts)
        place = ((chosen.cumsum(0) - 1) * chosen).sum(-1)  # among the words of the same expert
        fits = place < self.capacity
        slot = torch.where(fits, expert * self.capacity + place, self.experts * self.capacity)
        sent = words.new_zeros(self.experts * self.capacity + 1, words.shape[-1]).index_copy(0, slot, words)
        received = functional.all_to_all_single_autograd(sent[:-1], None, None, dist.group.WORLD)
        computed = self.down(nn.functional.gelu(self.up(received)))
        back = functional.all_to_all_single_autograd(computed, None, None, dist.group.WORLD)
        result = torch.cat([back, back.new_zeros(1, back.shape[-1])])[slot]
        return words + result * (weight * fits)[:, None]


def main(steps: int = 5, width: int = 32, words: int = 64) -> None:
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    router = nn.Linear(width, count, bias=False)  # the same on all ranks
    torch.manual_seed(rank)
    model = Experts(width, count, capacity=2 * words // count)
    model.router.load_state_dict(router.state_dict())
    compiled = torch.compile(model, backend="helion_tpu", fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    x = torch.randn(words, width)
    for step in range(steps):
        loss = (compiled(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        dist.all_reduce(model.router.weight.grad, op=dist.ReduceOp.SUM)
        model.router.weight.grad /= count
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean.item() / count:.4f}", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(int(os.environ.get("STEPS", "5")))
    dist.destroy_process_group()

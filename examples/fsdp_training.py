"""Fully sharded training with checkpoint and resume: each rank holds a part of every parameter and of its optimizer
state, and rows of its own.

    torchrun --nproc-per-node 4 examples/fsdp_training.py checkpoint_folder

Run it again with the same folder: it goes on where the last run stopped. On a pod start one process a chip with the
same command on every host, and give a folder that all hosts see.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def main(folder: str, steps: int = 5, width: int = 64) -> None:
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer(width) for _ in range(4)), nn.Linear(width, 1))
    mesh = init_device_mesh("cpu", (count,), mesh_dim_names=("data",))
    for layer in model:
        layer.compile(backend="helion_tpu")  # a program a layer: its parameters are gathered around it
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    first = 0
    if os.path.exists(os.path.join(folder, ".metadata")):
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state, "step": 0}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        first = state["step"]
    for step in range(first, first + steps):
        rows = torch.randn(8, width, generator=torch.Generator().manual_seed(1000 * step + rank))
        loss = (model(rows) - rows.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean.item() / count:.4f}", flush=True)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state, "step": first + steps}, checkpoint_id=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: torchrun --nproc-per-node N examples/fsdp_training.py FOLDER")
    dist.init_process_group("gloo")
    main(sys.argv[1], int(os.environ.get("STEPS", "5")))
    dist.destroy_process_group()

"""A Llama whose matrices are spread over ranks, trained for some steps: one XLA program a direction.

    torchrun --nproc-per-node 4 examples/tensor_parallel_llama.py

On a pod start one process a chip with the same command on every host (``--nnodes``, ``--rdzv-endpoint``), and make the
mesh of its devices. The programs hold one all-reduce after each block's rows, and nothing else goes between chips.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import LlamaConfig, LlamaForCausalLM

PLAN = {
    "self_attn.q_proj": ColwiseParallel(),
    "self_attn.k_proj": ColwiseParallel(),
    "self_attn.v_proj": ColwiseParallel(),
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(),
    "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}
"""Columns first, then rows: between the two every rank has its own heads, and its own part of the MLP."""


def main(steps: int = 5) -> None:
    torch.manual_seed(0)  # the same weights on all ranks
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("model",))
    for layer in model.model.layers:
        parallelize_module(layer, mesh, PLAN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    compiled = torch.compile(model, backend="helion_tpu")
    tokens = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        loss = compiled(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(int(os.environ.get("STEPS", "5")))
    dist.destroy_process_group()

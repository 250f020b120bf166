"""A small decoder, and the ways to spread it over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

WIDTH, HEADS, LENGTH, WORDS = 32, 4, 8, 16


class Attention(nn.Module):
    """Of the heads that a rank has."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [one(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for one in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.RMSNorm(WIDTH), Attention()
        self.norm_2, self.gate = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        y = self.norm_2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Words [batch, length] to logits [batch, length, words]."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def decoder(dtype: torch.dtype = torch.float32, layers: int = 2) -> Decoder:
    """The same one on every rank."""
    torch.manual_seed(5)
    return Decoder(layers).to(dtype)


def words(batch: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, WORDS, (batch, LENGTH), generator=generator)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Columns and rows of a block's matrices."""
    columns = {f"attention.{name}": ColwiseParallel() for name in "qkv"} | {
        "gate": ColwiseParallel(),
        "up": ColwiseParallel(),
    }
    rows = {"attention.out": RowwiseParallel(), "down": RowwiseParallel()}
    for block in model.layers:
        parallelize_module(block, mesh, {**columns, **rows})
    return model


def sequence_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """The same, with the rows between them spread along the sequence."""
    whole = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    for block in model.layers:
        plan: dict[str, Any] = {f"attention.{name}": ColwiseParallel() for name in "qkv"}
        plan |= {"gate": ColwiseParallel(), "up": ColwiseParallel(), "attention": whole}
        plan |= {
            "attention.out": RowwiseParallel(output_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Shard(1)),
        }
        plan |= {"norm": SequenceParallel(), "norm_2": SequenceParallel(use_local_output=False)}
        plan |= {name: ColwiseParallel(input_layouts=Shard(1)) for name in ("gate", "up")}
        parallelize_module(block, mesh, plan)
    parallelize_module(
        model,
        mesh,
        {
            "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        },
    )
    return model


class Gathered(nn.Module):
    """A parametrisation: a parameter that its ranks hold in parts, whole for the forward; gradients are added up."""

    def __init__(self, placements: tuple[Placement, ...]) -> None:
        super().__init__()
        self.placements = placements

    def forward(self, part: DTensor) -> torch.Tensor:
        whole = part.redistribute(placements=self.placements)
        partial = [Partial("avg") if one.is_replicate() else one for one in self.placements]
        return whole.to_local(grad_placements=partial)


def simple_fsdp(model: nn.Module, mesh: DeviceMesh, placements: tuple[Placement, ...] = (Shard(0),)) -> nn.Module:
    """Every parameter in parts, as torchtitan's SimpleFSDP has them."""
    gathered = tuple(Replicate() for _ in placements)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            part = nn.Parameter(distribute_tensor(parameter.detach(), mesh, list(placements)))
            module.register_parameter(name, part)
            torch.nn.utils.parametrize.register_parametrization(module, name, Gathered(gathered), unsafe=True)
    return model


def whole(tensor: Any) -> torch.Tensor:
    """All of a tensor that ranks may hold in parts."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def named_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients, whole, by the names that the parameters have in one process."""
    found = {}
    for name, parameter in model.named_parameters():
        short = name.replace("parametrizations.", "").removesuffix(".original").replace("module.", "")
        assert parameter.grad is not None, name
        found[short] = whole(parameter.grad).detach()
    return found


Step = Callable[[torch.Tensor], torch.Tensor]


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

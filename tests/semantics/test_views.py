"""Views and what moves elements: shapes, strides, and which results share memory with what."""

from __future__ import annotations

import torch

from tests.semantics.arguments import floats, ints
from tests.semantics.eager_check import Case, both_ways, check

CHANNELS = torch.channels_last


def pixels(n: int) -> torch.Tensor:
    return floats(2, 3, n, 4).contiguous(memory_format=CHANNELS)


CASES = {
    "view": Case(lambda x: x.view(-1, 2), lambda n: (floats(n, 2),)),
    "view as another type": Case(lambda x: x.view(torch.int32), lambda n: (floats(n, 2),)),
    "view as a narrower type": Case(lambda x: x.view(torch.int16), lambda n: (floats(n, 2),)),
    "reshape that copies": Case(lambda x: x.t().reshape(-1), lambda n: (floats(n, 3),)),
    "reshape that does not": Case(lambda x: x.reshape(2, -1), lambda n: (floats(n, 3),)),
    "transpose": Case(lambda x: x.transpose(0, 1), lambda n: (floats(n, 3),)),
    "permute": Case(lambda x: x.permute(2, 0, 1), lambda n: (floats(n, 3, 2),)),
    "movedim": Case(lambda x: x.movedim(0, -1) + 1, lambda n: (floats(n, 3, 2),)),
    "expand": Case(lambda x: x.expand(3, -1, 2), lambda n: (floats(n, 1),)),
    "expand, computed": Case(lambda x: (x * 2).expand(3, -1), lambda n: (floats(n),)),
    "squeeze, unsqueeze": Case(lambda x: (x.squeeze(1), x.unsqueeze(0)), lambda n: (floats(n, 1),)),
    "narrow": Case(lambda x: x.narrow(0, 1, 2), lambda n: (floats(n, 3),)),
    "select": Case(lambda x: x.select(1, -1), lambda n: (floats(n, 3),)),
    "a slice with a step": Case(lambda x: x[::2, 1], lambda n: (floats(n, 3),)),
    "diagonal": Case(lambda x: x.diagonal(1), lambda n: (floats(n, n),)),
    "diagonal, computed": Case(lambda x: (x + 1).diagonal(-1), lambda n: (floats(n, n),)),
    "unfold": Case(lambda x: x.unfold(0, 3, 1), lambda n: (floats(n),)),
    "as_strided": Case(lambda x: x.as_strided((2, 2), (1, 2), 1), lambda n: (floats(n, 2),)),
    "as_strided of a computed value": Case(lambda x: (x * 2).as_strided((2, 2), (2, 1), 1), lambda n: (floats(n, 2),)),
    "as_strided of a transposed one": Case(lambda x: (x.t() * 2).as_strided((2, 3), (1, 2)), lambda n: (floats(n, 3),)),
    "split": Case(lambda x: x.split(3), lambda n: (floats(n, 2),)),
    "chunk": Case(lambda x: x.chunk(2), lambda n: (floats(n, 2),)),
    "unbind": Case(lambda x: x.unbind(1), lambda n: (floats(n, 3),)),
    "tensor_split": Case(lambda x: x.tensor_split(2, 0), lambda n: (floats(n + 1, 3),)),
    "flip": Case(lambda x: x.flip(0), lambda n: (floats(n, 3),)),
    "flip of a transposed tensor": Case(lambda x: x.t().flip(0, 1), lambda n: (floats(n, 3),)),
    "roll": Case(lambda x: x.roll(1, 0), lambda n: (floats(n, 3),)),
    "roll of all": Case(lambda x: x.roll(2), lambda n: (floats(n, 3),)),
    "roll of channels last": Case(lambda x: x.roll((1, 2), (1, 3)), lambda n: (pixels(n),)),
    "rot90": Case(lambda x: x.rot90(), lambda n: (floats(n, 3),)),
    "tile, repeat": Case(lambda x: (x.tile(2), x.repeat(2, 1)), lambda n: (floats(n, 2),)),
    "cat of two orders": Case(lambda x, y: torch.cat([x.t(), y]), lambda n: (floats(3, n), floats(n, 3))),
    "cat of channels last": Case(lambda x: torch.cat([x, x * 2], 1), lambda n: (pixels(n),)),
    "stack": Case(lambda x, y: torch.stack([x, y], 1), lambda n: (floats(n, 2), floats(n, 2))),
    "contiguous": Case(lambda x: x.t().contiguous(), lambda n: (floats(n, 3),)),
    "contiguous already": Case(lambda x: x.contiguous(), lambda n: (floats(n, 3),)),
    "to channels last": Case(lambda x: x.contiguous(memory_format=CHANNELS), lambda n: (floats(2, 3, n, 4),)),
    "pointwise of channels last": Case(lambda x: x.relu() + 1, lambda n: (pixels(n),)),
    "channels last and row-major": Case(lambda x, y: x + y, lambda n: (pixels(n), floats(2, 3, n, 4))),
    "clone keeps strides": Case(lambda x: x.t().clone(), lambda n: (floats(n, 3),)),
    "empty_like keeps strides": Case(lambda x: torch.zeros_like(x.t()), lambda n: (floats(n, 3),)),
    "a type conversion keeps strides": Case(lambda x: x.t().double(), lambda n: (floats(n, 3),)),
    "a sum of permuted": Case(lambda x: x.permute(2, 0, 1).sum(0), lambda n: (floats(n, 3, 2),)),
    "copysign": Case(lambda x, y: torch.copysign(x.t(), y), lambda n: (floats(3, n), floats(n, 3))),
    "floor_divide": Case(lambda x, y: x.t() // y, lambda n: (floats(3, n), floats(n, 3))),
    "div with floor": Case(
        lambda x, y: torch.div(x.t(), y, rounding_mode="floor"), lambda n: (floats(3, n), floats(n, 3))
    ),
    "xlogy": Case(lambda x, y: torch.xlogy(x.t(), y.abs()), lambda n: (floats(3, n), floats(n, 3))),
    "addr with beta 0": Case(
        lambda x, a, b: torch.addr(x.t(), a, b, beta=0), lambda n: (floats(3, n), floats(n), floats(3))
    ),
    "as_strided of copysign": Case(
        lambda x, y: torch.copysign(x.t(), y).as_strided((4,), (1,)), lambda n: (floats(3, n), floats(n, 3))
    ),
    "rows by transposed positions": Case(
        lambda x, i: x[i.t()], lambda n: (floats(n, 3), torch.arange(6).reshape(2, 3) % n)
    ),
    "by transposed positions": Case(lambda x, i: x[i.t()], lambda n: (floats(n), torch.arange(6).reshape(2, 3) % n)),
    "pad": Case(lambda x: torch.nn.functional.pad(x, (1, 2)), lambda n: (floats(n, 3),)),
    "tril of a transposed tensor": Case(lambda x: x.t().tril(), lambda n: (floats(n, n),)),
    "where of two orders": Case(lambda x, y: torch.where(x.t() > 0, x.t(), y), lambda n: (floats(3, n), floats(n, 3))),
    "real and imaginary parts": Case(lambda x: (torch.complex(x, -x).real, torch.complex(x, x).imag), lambda n: (floats(n),)),
    "broadcast_to": Case(lambda x: torch.broadcast_to(x, (2, 3, x.shape[0])), lambda n: (floats(n),)),
    "meshgrid": Case(lambda x, y: torch.meshgrid(x, y, indexing="ij"), lambda n: (floats(n), floats(3))),
    "integers flattened": Case(lambda x: x.flatten().view(-1, 2), lambda n: (ints(n, 2, 2),)),
    "unflatten": Case(lambda x: x.unflatten(1, (2, -1)), lambda n: (floats(3, n),)),
}  # fmt: skip


@both_ways(CASES)
def test_views(case: Case, dynamic: bool) -> None:
    check(case, dynamic)

"""A decoder that serves: prompts and sequences that get their next token share one step, over one cache of pages.

    python examples/ragged_serving.py

The step is one XLA program. New keys and values are written into the cache, which is an argument that the step
mutates; JAX's kernel for ragged paged attention reads of it the pages that each sequence has. Compiled for a TPU, the
cache is updated where it lies.

A sequence's tokens stand one after another in the step, sequence after sequence. The last ones of ``lengths``,
``table`` and ``starts`` may be empty: ``count`` says how many sequences there are, so that one program does for any.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from torch import nn

import tpu_lowering

PAGE = 16
"""Tokens in a page."""


def _seen_by_each(tokens: int, lengths: jax.Array, starts: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each token of the step, its sequence, and how many keys of that it sees."""
    places = jnp.arange(tokens)
    owner = jnp.clip(jnp.searchsorted(starts, places, side="right") - 1, 0, count[0] - 1)
    return owner, lengths[owner] - (starts[owner + 1] - 1 - places)


def _by_gathering(query, pages, lengths, table, starts, count, scale):
    """What the kernel computes, for a CPU: every token with all pages of its sequence."""
    tokens, width = query.shape[0], query.shape[2]
    owner, seen = _seen_by_each(tokens, lengths, starts, count)
    rows = pages[table].reshape(table.shape[0], -1, pages.shape[2] // 2, 2, width)[owner].astype(jnp.float32)
    grouped = query.reshape(tokens, rows.shape[2], -1, width).astype(jnp.float32)
    scores = jnp.einsum("thgd,tkhd->thgk", grouped, rows[..., 0, :]) * scale
    hidden = jnp.arange(rows.shape[1]) >= seen[:, None]
    weights = jax.nn.softmax(jnp.where(hidden[:, None, None], -jnp.inf, scores), axis=-1)
    result = jnp.einsum("thgk,tkhd->thgd", weights, rows[..., 1, :]).reshape(query.shape)
    there = jnp.arange(tokens) < starts[count[0]]
    return jnp.where(there[:, None, None], result, 0).astype(query.dtype)


@tpu_lowering.kernel_op("serving::ragged_attention", mutates_args=("out",))
def ragged_attention(
    query: torch.Tensor,
    pages: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
    starts: torch.Tensor,
    count: torch.Tensor,
    out: torch.Tensor,
    scale: float,
) -> None:
    """Attention of each sequence's new tokens over its pages, the new ones among them.

    Args:
        query: [tokens, heads, width].
        pages: [pages, PAGE, 2 * key heads, width]: of each head the key, then the value.
        lengths: int32 [sequences], with the new tokens.
        table: int32 [sequences, pages of each].
        starts: int32 [sequences + 1], the first of each sequence's tokens.
        count: int32 [1], how many sequences there are.
        out: like ``query``; tokens of no sequence get anything.
    """
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    blocks = {"num_kv_pages_per_block": min(table.shape[1], 512 // PAGE), "num_queries_per_block": 32}

    def by_kernel(*given):
        return ragged_paged_attention(*given, sm_scale=scale, vmem_limit_bytes=48 << 20, **blocks)

    def by_gathering(*given):
        return _by_gathering(*given, scale)

    return jax.lax.platform_dependent(query, pages, lengths, table, starts, count, cpu=by_gathering, default=by_kernel)


class Layer(nn.Module):
    """Attention with rotary embedding over the cache, and a gated MLP."""

    def __init__(self, size: int, heads: int, key_heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.key_heads, self.width = heads, key_heads, width
        self.norms = nn.ModuleList(nn.RMSNorm(size) for _ in range(2))
        self.query = nn.Linear(size, heads * width, bias=False)
        self.key_and_value = nn.Linear(size, key_heads * 2 * width, bias=False)
        self.output = nn.Linear(heads * width, size, bias=False)
        self.gate, self.up = (nn.Linear(size, 2 * size, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * size, size, bias=False)

    def forward(self, rows, rotation, slots, pages, *sequences):
        normed = self.norms[0](rows)
        query = rotated(self.query(normed).view(-1, self.heads, self.width), *rotation)
        key, value = self.key_and_value(normed).view(-1, self.key_heads, 2, self.width).unbind(2)
        both = torch.stack((rotated(key, *rotation), value), 2).flatten(1, 2)
        pages.view(-1, *pages.shape[2:]).index_copy_(0, slots, both)
        seen = torch.empty_like(query)
        torch.ops.serving.ragged_attention(query, pages, *sequences, seen, self.width**-0.5)
        rows = rows + self.output(seen.flatten(1))
        normed = self.norms[1](rows)
        return rows + self.down(nn.functional.silu(self.gate(normed)) * self.up(normed))


def rotated(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = rows.chunk(2, -1)
    return rows * cos + torch.cat((-second, first), -1) * sin


class Decoder(nn.Module):
    """Tokens to logits; each layer has pages of its own."""

    def __init__(self, words: int = 256, size: int = 128, layers: int = 2, heads: int = 4, key_heads: int = 2) -> None:
        super().__init__()
        self.width = 128  # of a head: the kernel takes multiples of that
        self.embedding = nn.Embedding(words, size)
        self.layers = nn.ModuleList(Layer(size, heads, key_heads, self.width) for _ in range(layers))
        self.head = nn.Linear(size, words, bias=False)

    def pages(self, count: int) -> list[torch.Tensor]:
        shape = (count, PAGE, 2 * self.layers[0].key_heads, self.width)
        return [torch.zeros(shape, dtype=self.head.weight.dtype) for _ in self.layers]

    def forward(self, tokens, positions, slots, cache, lengths, table, starts, count):
        """Logits of every token. ``slots`` are the places of the tokens' keys in the cache, int64."""
        angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, self.width, 2) / self.width)
        rotation = [torch.cat((of, of), -1)[:, None].to(self.head.weight.dtype) for of in (angles.cos(), angles.sin())]
        rows = self.embedding(tokens)
        for layer, pages in zip(self.layers, cache, strict=True):
            rows = layer(rows, rotation, slots, pages, lengths, table, starts, count)
        return self.head(rows)


class Batch:
    """Sequences that are being served, and what a step is given of them."""

    def __init__(self, tokens: int = 32, sequences: int = 4, pages_of_each: int = 4) -> None:
        self.tokens, self.sequences, self.pages_of_each = tokens, sequences, pages_of_each
        self.seen = [0] * sequences

    def step(self, new: list[list[int]]) -> list[torch.Tensor]:
        """The arguments of a step in which each sequence gets some new tokens: tokens, positions, slots, then lengths,
        table, starts, count. Sequence ``n`` has the pages from ``n * pages_of_each`` on; the last page of all is for
        tokens that are none."""
        tokens = [token for of in new for token in of]
        places = [(n, self.seen[n] + at) for n, of in enumerate(new) for at in range(len(of))]
        slots = [n * self.pages_of_each * PAGE + at for n, at in places]
        nowhere = self.sequences * self.pages_of_each * PAGE
        missing = self.tokens - len(tokens)
        self.seen = [seen + len(of) for seen, of in zip(self.seen, new, strict=True)]
        starts = [0]
        for of in new:
            starts.append(starts[-1] + len(of))
        i32 = {"dtype": torch.int32}
        table = torch.arange(self.sequences * self.pages_of_each, **i32).view(self.sequences, -1)
        return [
            torch.tensor(tokens + [0] * missing),
            torch.tensor([at for _, at in places] + [0] * missing),
            torch.tensor(slots + [nowhere] * missing),
            torch.tensor(self.seen, **i32),
            table,
            torch.tensor(starts, **i32),
            torch.tensor([self.sequences], **i32),
        ]


def main() -> None:
    torch.manual_seed(0)
    model, batch = Decoder().eval().requires_grad_(False), Batch()
    step = torch.compile(model, backend="helion_tpu", fullgraph=True)
    cache = model.pages(batch.sequences * batch.pages_of_each + 1)
    prompts = [torch.randint(0, 256, (length,)).tolist() for length in (9, 3, 14, 1)]
    new = prompts
    for at in range(4):
        tokens, positions, slots, *sequences = batch.step(new)
        logits = step(tokens, positions, slots, cache, *sequences)
        last = [int(end) - 1 for end in sequences[2][1:]]
        chosen = logits[last].argmax(-1).tolist()
        print(f"step {at}: {sum(map(len, new))} tokens of {len(new)} sequences, next ones {chosen}")
        new = [[token] for token in chosen]
        if at == 0:  # one sequence ends, and another begins beside those that go on
            batch.seen[1], new[1] = 0, torch.randint(0, 256, (11,)).tolist()


if __name__ == "__main__":
    main()

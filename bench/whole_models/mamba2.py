"""A layer of Mamba-2, whose states are computed chunk by chunk."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from jax import lax

from bench.whole_models import jax_parts as parts
from bench.whole_models.case import Built, Case, Weights, made


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a decoder, and of what it is given.

    Attributes:
        state: elements of the state for each element of a head.
        groups: heads of a group share what writes and reads their states.
        chunk: tokens of a chunk.
    """

    width: int = 2048
    heads: int = 64
    head: int = 64
    state: int = 128
    groups: int = 8
    chunk: int = 256
    kernel: int = 4
    vocabulary: int = 32768
    batch: int = 2
    length: int = 2048
    epsilon: float = 1e-5

    @property
    def inner(self) -> int:
        return self.heads * self.head

    def config(self) -> Any:
        return transformers.Mamba2Config(
            hidden_size=self.width, num_heads=self.heads, head_dim=self.head, state_size=self.state,
            n_groups=self.groups, chunk_size=self.chunk, conv_kernel=self.kernel, num_hidden_layers=1,
            vocab_size=self.vocabulary, layer_norm_epsilon=self.epsilon, expand=self.inner // self.width,
        )  # fmt: skip


SMALL = Sizes(width=32, heads=8, head=8, state=16, groups=2, chunk=32, vocabulary=160, length=128)


def convolved(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Each channel of [batch, chunks, channels, chunk] by its own kernel [channels, 1, taps] over tokens before; then
    silu."""
    length, taps = x.shape[-1], weight.shape[-1]
    before = jnp.pad(x[:, :-1, :, 1 - taps :], ((0, 0), (1, 0), (0, 0), (0, 0)))
    padded = jnp.concatenate((before, x), -1)
    summed = sum(padded[..., at : at + length].astype(jnp.float32) * weight[:, :, at] for at in range(taps))
    return jax.nn.silu((summed + bias[:, None]).astype(x.dtype))


def scanned(x: jax.Array, step: jax.Array, decay: jax.Array, write: jax.Array, read: jax.Array) -> Any:
    """(the result [batch, chunks, groups, heads, head, chunk], the last state [batch, groups, heads, head, state]) of a
    selective scan; both are float32.

    Args:
        x: [batch, chunks, groups, heads, head, chunk].
        step: [batch, chunks, groups, heads, chunk], float32.
        decay: [groups, heads, 1], float32; negative.
        write, read: [batch, chunks, groups, state, chunk].
    """
    wide, total = jnp.float32, jnp.cumsum(step * decay, -1)
    earlier = jnp.tril(jnp.ones((x.shape[-1], x.shape[-1]), bool))
    fading = jnp.exp(jnp.where(earlier, total[..., None] - total[..., None, :], -jnp.inf))
    scores = jnp.einsum("bcgnl,bcgns->bcgls", read, write, preferred_element_type=wide)
    weights = (scores[:, :, :, None] * fading * step[..., None, :]).astype(x.dtype)
    made = jnp.einsum("bcgrls,bcgrps->bcgrpl", weights, x, preferred_element_type=wide)

    left = (jnp.exp(total[..., -1:] - total) * step)[..., None, :].astype(x.dtype)
    states = jnp.einsum("bcgns,bcgrps->bcgrpn", write, x * left, preferred_element_type=wide)

    def following(state: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        added, kept = chunk
        return state * kept[..., None, None] + added, state

    over = jnp.moveaxis(states, 1, 0), jnp.moveaxis(jnp.exp(total[..., -1]), 1, 0)
    last, before = lax.scan(following, jnp.zeros_like(states[:, 0]), over, unroll=True)
    before = jnp.moveaxis(before, 0, 1).astype(x.dtype)
    seen = jnp.einsum("bcgnl,bcgrpn->bcgrpl", read, before, preferred_element_type=wide)
    return made + seen * jnp.exp(total)[..., None, :], last


def mixed(sizes: Sizes, x: jax.Array, own: Weights) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the result, the convolution's last inputs, the last state) of a mixer.

    Tokens of a chunk are the last dimension throughout: heads of 64 would fill half of the lanes.
    """
    batch = x.shape[0]
    chunks = x.reshape(batch, -1, sizes.chunk, sizes.width)
    ends = (sizes.inner, 2 * sizes.inner + 2 * sizes.groups * sizes.state)
    gate, channels, step = (
        jnp.einsum("bclm,dm->bcdl", chunks, weight) for weight in jnp.split(own["in_proj.weight"], ends)
    )
    tail = channels[:, -1, :, -sizes.kernel :]
    channels = convolved(channels, own["conv1d.weight"], own["conv1d.bias"])
    heads, write, read = (
        one.reshape(*one.shape[:2], sizes.groups, -1, sizes.chunk)
        for one in jnp.split(channels, (sizes.inner, sizes.inner + sizes.groups * sizes.state), 2)
    )
    heads = heads.reshape(*heads.shape[:3], -1, sizes.head, sizes.chunk)
    step = jax.nn.softplus(step + own["dt_bias"][:, None]).astype(jnp.float32).reshape(*heads.shape[:4], -1)
    decay = -jnp.exp(own["A_log"].astype(jnp.float32)).reshape(sizes.groups, -1, 1)
    made, state = scanned(heads, step, decay, write, read)
    made = made + own["D"].astype(jnp.float32).reshape(sizes.groups, -1, 1, 1) * heads
    made = made * jax.nn.silu(gate.astype(jnp.float32)).reshape(made.shape)
    made = made * lax.rsqrt(jnp.mean(made * made, (3, 4), keepdims=True) + sizes.epsilon)
    made = (own["norm.weight"][:, None] * made.reshape(gate.shape)).astype(x.dtype)
    made = jnp.einsum("bcdl,md->bclm", made, own["out_proj.weight"]).reshape(x.shape)
    return made, tail, state.reshape(batch, sizes.heads, sizes.head, -1)


def twin(sizes: Sizes, weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
    """(logits of the last token, float32; the convolution's last inputs; the last state, float32)."""
    x = parts.embedding(weights["backbone.embeddings.weight"], tokens)
    own = parts.subset(weights, "backbone.layers.0.")
    hidden = parts.rms_norm(x, own["norm.weight"], sizes.epsilon)
    made, tail, state = mixed(sizes, hidden, parts.subset(own, "mixer."))
    last = (x[:, -1:].astype(jnp.float32) + made[:, -1:]).astype(jnp.float32)
    last = parts.rms_norm(last, weights["backbone.norm_f.weight"], sizes.epsilon).astype(x.dtype)
    return parts.linear(last, weights["lm_head.weight"]).astype(jnp.float32), tail, state


def build(small: bool) -> Built:
    sizes = SMALL if small else Sizes()
    module: Any = made(lambda: transformers.Mamba2ForCausalLM(sizes.config()), small).eval()
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.length))

    def function(tokens: torch.Tensor) -> Any:
        found = module(tokens, use_cache=True, logits_to_keep=1)
        layer = found.cache.layers[0]
        return found.logits, layer.conv_states[0], layer.recurrent_states[0]

    def by_hand(weights: Weights, tokens: jax.Array) -> tuple[jax.Array, ...]:
        return twin(sizes, weights, tokens)

    read = {"backbone.embeddings.weight": tokens.numel() * sizes.width * 2}
    return Built(module, function, (tokens,), by_hand, read=read)


CASES = (Case("mamba2_prefill", "Mamba-2 layer of width 2048, prefill 2x2048", False, build, 1.0),)

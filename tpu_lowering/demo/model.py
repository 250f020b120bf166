"""The demo model: four Llama blocks over bytes, with random weights that are the same in every run.

`decoder(kernels=False)` is the model of the `transformers` library, untouched, and runs anywhere.
`decoder(kernels=True)` has the same weights and calls a Helion kernel wherever a block has a norm, an
attention or a gated MLP; without Helion, a Pallas kernel. Each call allocates its result with
`torch.empty_like` and hands it to the kernel; such a model needs `torch.compile`, because Helion's kernels
are written for TPU.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from tpu_lowering import compat

if compat.has_helion():
    from tpu_lowering.demo.kernels import causal_attention_into, rms_norm_into, swiglu_into
else:
    from tpu_lowering.demo.pallas_kernels import causal_attention_into, rms_norm_into, swiglu_into

ATTENTION = "helion_causal"
"""The name under which `causal_attention` is known to `transformers`."""


def config() -> LlamaConfig:
    """Four layers of width 256; four query heads of width 64 share two key heads; a token is a byte."""
    return LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def decoder(kernels: bool, *, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, float32; call it as `model(tokens, use_cache=False).logits`.

    No parameter asks for a gradient: the kernels have no backward, and without one PyTorch would quietly
    treat what they return as constant.

    Args:
        kernels: whether norms, attention and MLPs call Helion kernels.
        seed: the seed of the random weights. The process's own generator is left as it was.

    Returns:
        A module that maps int64 tokens [batch, length] to logits [batch, length, 256].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config())
    model.set_attn_implementation("eager")
    model.eval().requires_grad_(False)
    if kernels:
        swap_in_kernels(model)
    return model


def swap_in_kernels(model: LlamaForCausalLM) -> None:
    """Replace the model's norms, MLPs and attention, in place, by ones that call Helion kernels.

    Weights are shared with the modules that are replaced, under the same names. Nothing outside the model
    changes, except that `transformers` learns one more attention function. The result takes whole sequences
    without padding.

    Raises:
        ValueError: for an activation other than SiLU.
    """
    if model.config.hidden_act != "silu":
        raise ValueError(f"expected hidden_act 'silu', got {model.config.hidden_act!r}")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if replace := REPLACEMENTS.get(type(child)):
                setattr(parent, name, replace(child))
    AttentionInterface.register(ATTENTION, causal_attention)
    AttentionMaskInterface.register(ATTENTION, no_mask)
    model.set_attn_implementation(ATTENTION)


class RMSNorm(nn.Module):
    """`LlamaRMSNorm` as one kernel."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same."""
        rows = x.view(-1, x.shape[-1])
        out = torch.empty_like(rows)
        rms_norm_into(rows, self.weight, out, self.eps)
        return out.view(x.shape)


class MLP(nn.Module):
    """`LlamaMLP` with its gate as one kernel between the matrix products, which XLA does best."""

    def __init__(self, mlp: LlamaMLP) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same."""
        rows = x.view(-1, x.shape[-1])
        gate, up = self.gate_proj(rows), self.up_proj(rows)
        out = torch.empty_like(gate)
        swiglu_into(gate, up, out)
        return self.down_proj(out).view(x.shape)


REPLACEMENTS: dict[type[nn.Module], Callable[..., nn.Module]] = {LlamaRMSNorm: RMSNorm, LlamaMLP: MLP}


def no_mask(*_: object, attention_mask: torch.Tensor | None = None, **__: object) -> None:
    """The mask that goes with `causal_attention`: none, because the kernel knows which keys are in the past.

    Raises:
        ValueError: for a padding mask, which `transformers` would otherwise drop.
    """
    if attention_mask is not None:
        raise ValueError(f"expected no attention mask, got one of shape {tuple(attention_mask.shape)}")


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """An attention function in the form `transformers.AttentionInterface` asks for.

    Args:
        module: the attention layer; unused.
        query: [batch, heads, length, width].
        key, value: [batch, key heads, length, width]; `heads` is a multiple of `key heads`.
        attention_mask: must be None: all that is masked is the future.
        scaling: factor of the scores.
        dropout: must be 0.

    Returns:
        [batch, length, heads, width], and no weights.

    Raises:
        ValueError: for a mask, dropout, or keys from an earlier call.
    """
    if attention_mask is not None or dropout or query.shape[2] != key.shape[2]:
        raise ValueError(
            "expected causal self-attention without mask, dropout or cache, got "
            f"mask {None if attention_mask is None else tuple(attention_mask.shape)}, dropout {dropout}, "
            f"{query.shape[2]} queries and {key.shape[2]} keys; call the model with use_cache=False"
        )
    batch, heads, length, width = query.shape
    key_heads = batch * key.shape[1]
    grouped = query.reshape(key_heads, -1, width)
    out = torch.empty_like(grouped)
    causal_attention_into(
        grouped, key.reshape(key_heads, length, width), value.reshape(key_heads, length, width), out, scaling
    )
    return out.view(batch, heads, length, width).transpose(1, 2), None


def text_tokens(text: str, length: int) -> torch.Tensor:
    """The first `length` UTF-8 bytes of a text, int64 [1, length].

    Raises:
        ValueError: if the text is shorter.
    """
    data = text.encode()[:length]
    if len(data) < length:
        raise ValueError(f"expected a text of at least {length} bytes, got {len(data)}")
    return torch.tensor([list(data)], dtype=torch.int64)


def project_text() -> str:
    """The project's README: from the source tree or, once installed, from the package's metadata.

    Raises:
        LookupError: if there is neither.
    """
    readme = Path(__file__).parents[2] / "README.md"
    if readme.is_file():
        return readme.read_text(encoding="utf-8")
    try:
        description = importlib.metadata.metadata("tpu-lowering")["Description"]
    except importlib.metadata.PackageNotFoundError:
        description = None
    if not isinstance(description, str) or not description:
        raise LookupError(f"expected the project's README at {readme} or in the metadata of tpu-lowering, got none")
    return description

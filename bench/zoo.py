"""The model suite: known architectures at toy sizes with random weights, for tests and benchmarks; no downloads.

The transformers models are built from their configs: two layers, hidden size 64, a vocabulary of 200, no dropout.
``bench.vision`` has the two networks of our own. Sequences are padded, so that masks matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from bench import vision

Inputs = dict[str, torch.Tensor]

VOCABULARY = 200
BATCH, LENGTH, PADDING = 2, 16, 4  # the second sequence ends in padding
IGNORED = -100  # the label that losses leave out

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"intermediate_size": 128}
GROUPED = {"num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False, "pad_token_id": 0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODER = {**SIZES, **WIDE, **NO_DROPOUT, "max_position_embeddings": 64}
SEQ2SEQ = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4} | {
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "dropout": 0.0, "use_cache": False,
}  # fmt: skip
PATCHES = {"image_size": 32, "patch_size": 8}


@dataclasses.dataclass(frozen=True)
class Model:
    """One architecture.

    Attributes:
        build: a new model with random weights, in training mode; draws from torch's global generator.
        inputs: keyword arguments of its forward, drawn from torch's global generator.
        result: the tensor that stands for its outputs, such as logits.
        loss: a scalar of its outputs that all its trained parameters act on.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    result: Callable[[Any], torch.Tensor] = lambda outputs: outputs.logits
    loss: Callable[[Any], torch.Tensor] = lambda outputs: outputs.loss

    def step(self, model: nn.Module, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, result) of one forward: what is compiled."""
        outputs = model(**inputs)
        return self.loss(outputs), self.result(outputs)


def tokens() -> torch.Tensor:
    """int64 [batch, length], never one of the special tokens 0 to 3."""
    return torch.randint(4, VOCABULARY, (BATCH, LENGTH))


def padding_mask() -> torch.Tensor:
    """int64 [batch, length]: 1 for a token, 0 for padding."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, -PADDING:] = 0
    return mask


def text() -> Inputs:
    """Tokens, and themselves as labels but for the padding."""
    words, mask = tokens(), padding_mask()
    return {"input_ids": words, "attention_mask": mask, "labels": words.masked_fill(mask == 0, IGNORED)}


def unmasked_text() -> Inputs:
    """For models without attention."""
    words = tokens()
    return {"input_ids": words, "labels": words}


def pairs_of_text() -> Inputs:
    """A padded source, and a shorter target as labels."""
    return {"input_ids": tokens(), "attention_mask": padding_mask(), "labels": tokens()[:, :10].contiguous()}


def images() -> torch.Tensor:
    """float32 [batch, 3, 32, 32]."""
    return torch.randn(BATCH, 3, 32, 32)


def of(kind: str, head: str, inputs: Callable[[], Inputs] = text, /, **config: Any) -> Model:
    """A transformers model by the name of its family and what follows that in the class's name."""

    def build() -> nn.Module:
        return getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**config)).train()

    return Model(build, inputs)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=2, n_head=4, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    model.loss_type = "ForCausalLM"  # by the class's name none is found, and a warning inside forward breaks the graph
    return model


def clip() -> nn.Module:
    side = {"hidden_size": 64, **WIDE, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {**side, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": VOCABULARY - 1}
    config = transformers.CLIPConfig(text_config=words, vision_config={**side, **PATCHES}, projection_dim=32)
    return transformers.CLIPModel(config).train()


def captioned_images() -> Inputs:
    words = tokens()
    words[:, -1] = VOCABULARY - 1  # the text's embedding is read off the last token
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": images()}


def clip_loss(outputs: Any) -> torch.Tensor:
    """How well images and texts match, both ways; float32 []."""
    pairs = torch.arange(BATCH)
    both = (outputs.logits_per_text, outputs.logits_per_image)
    return sum((nn.functional.cross_entropy(logits, pairs) for logits in both), torch.zeros(()))


def sounds() -> Inputs:
    """A log-mel spectrogram of 60 frames, which the encoder halves, and the labels of its transcript."""
    return {"input_features": torch.randn(BATCH, 20, 60), "labels": tokens()}


MODELS: dict[str, Model] = {
    "llama": of("Llama", "ForCausalLM", **SIZES, **WIDE, **GROUPED),
    "qwen3": of("Qwen3", "ForCausalLM", **SIZES, **WIDE, **GROUPED, head_dim=16),
    "gemma": of("Gemma", "ForCausalLM", **SIZES, **WIDE, **GROUPED, head_dim=16),
    "mistral": of("Mistral", "ForCausalLM", **SIZES, **WIDE, **GROUPED, sliding_window=8),
    "mixtral": of(
        "Mixtral", "ForCausalLM", **SIZES, **WIDE, **GROUPED,
        num_local_experts=4, num_experts_per_tok=2,
    ),
    "gpt2": Model(gpt2, text),
    "phi": of("Phi", "ForCausalLM", **SIZES, **WIDE, **GROUPED),
    "opt": of(
        "OPT", "ForCausalLM", **SIZES, ffn_dim=128, max_position_embeddings=64, word_embed_proj_dim=64,
        dropout=0.0, use_cache=False, pad_token_id=1,
    ),
    "bert": of("Bert", "ForMaskedLM", **ENCODER),
    "roberta": of("Roberta", "ForMaskedLM", **ENCODER, pad_token_id=1),
    "distilbert": of(
        "DistilBert", "ForMaskedLM", vocab_size=VOCABULARY, dim=64, hidden_dim=128, n_layers=2, n_heads=4,
        max_position_embeddings=64, dropout=0.0, attention_dropout=0.0,
    ),
    "deberta": of("Deberta", "ForMaskedLM", **ENCODER, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta_v2": of(
        "DebertaV2", "ForMaskedLM", **ENCODER, relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
    ),
    "t5": of(
        "T5", "ForConditionalGeneration", pairs_of_text, vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128,
        num_layers=2, num_heads=4, dropout_rate=0.0, use_cache=False, decoder_start_token_id=0,
    ),
    "bart": of(
        "Bart", "ForConditionalGeneration", pairs_of_text, **SEQ2SEQ, vocab_size=VOCABULARY, max_position_embeddings=64,
    ),
    "vit": of(
        "ViT", "ForImageClassification", lambda: {"pixel_values": images(), "labels": torch.randint(0, 5, (BATCH,))},
        hidden_size=64, **WIDE, num_hidden_layers=2, num_attention_heads=4, **NO_DROPOUT, **PATCHES, num_labels=5,
    ),
    "clip": Model(clip, captioned_images, lambda outputs: outputs.logits_per_text, clip_loss),
    "whisper": of(
        "Whisper", "ForConditionalGeneration", sounds, **SEQ2SEQ, vocab_size=VOCABULARY, num_mel_bins=20,
        max_source_positions=30, max_target_positions=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    ),
    "mamba": of(
        "Mamba", "ForCausalLM", unmasked_text, vocab_size=VOCABULARY, hidden_size=64, state_size=8,
        num_hidden_layers=2, use_cache=False,
    ),
    "resnet": Model(
        vision.ResNet, lambda: {"images": torch.randn(4, 3, 32, 32), "labels": torch.randint(0, 10, (4,))},
        lambda outputs: outputs[1], lambda outputs: outputs[0],
    ),
    "unet": Model(
        vision.UNet, lambda: {"images": torch.randn(2, 3, 32, 32), "labels": torch.randint(0, 4, (2, 32, 32))},
        lambda outputs: outputs[1], lambda outputs: outputs[0],
    ),
}  # fmt: skip

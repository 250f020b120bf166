"""Models, forward and backward, through ``torch.compile(..., backend="helion_tpu", fullgraph=True)`` against eager."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

# bfloat16 keeps 8 bits: values of size 1 that went through a few layers in another order of rounding differ by a
# few parts in 256; float32 by a few hundred units in the last place.
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2}}

Case = tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]


def llama(dtype: torch.dtype) -> Case:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    tokens = torch.randint(0, 64, (2, 16))
    return LlamaForCausalLM(config).to(dtype), lambda model: model(tokens, labels=tokens, use_cache=False).loss


def bert(dtype: torch.dtype) -> Case:
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    tokens = torch.randint(0, 64, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 12:] = 0
    return (
        BertModel(config).to(dtype),
        lambda model: model(tokens, attention_mask=mask).last_hidden_state.float().square().mean(),
    )


class ResNetBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.block(x) + self.shortcut(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(dtype: torch.dtype) -> Case:
    images, labels = torch.randn(4, 3, 16, 16, dtype=dtype), torch.randint(0, 10, (4,))
    return ResNetBlock().to(dtype), lambda model: nn.functional.cross_entropy(model(images).float(), labels)


def mlp(dtype: torch.dtype) -> Case:
    layers = nn.Sequential(
        nn.Linear(20, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 5)
    )
    x, labels = torch.randn(8, 20, dtype=dtype), torch.randint(0, 5, (8,))
    return layers.to(dtype), lambda model: nn.functional.cross_entropy(model(x).float(), labels)


MODELS = {"llama": llama, "bert": bert, "resnet": resnet, "mlp": mlp}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", MODELS)
def test_training_step_equals_eager(name: str, dtype: torch.dtype) -> None:
    """Loss, every gradient and every buffer (running statistics) after one forward and backward."""
    torch.manual_seed(0)
    eager, loss_of = MODELS[name](dtype)
    eager.train()
    compiled = copy.deepcopy(eager)
    expected = loss_of(eager)
    expected.backward()
    actual = torch.compile(loss_of, backend="helion_tpu", fullgraph=True)(compiled)
    actual.backward()
    torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
    for (path, parameter), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), path
        if parameter.grad is not None:
            torch.testing.assert_close(
                other.grad, parameter.grad, **TOLERANCE[dtype], msg=lambda text, path=path: f"{path}: {text}"
            )
    for (path, buffer), other in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, **TOLERANCE[dtype], msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_inference_equals_eager(name: str) -> None:
    torch.manual_seed(0)
    model, loss_of = MODELS[name](torch.float32)
    model.eval()
    with torch.no_grad():
        expected = loss_of(model)
        actual = torch.compile(loss_of, backend="helion_tpu", fullgraph=True, options={"verify": True})(model)
    torch.testing.assert_close(actual, expected, **TOLERANCE[torch.float32])

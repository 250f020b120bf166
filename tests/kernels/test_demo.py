"""The demo decoder: the swapped kernels agree with `transformers`, and the whole model is one graph."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.kernels.capture_graphs import captured_graphs, kernel_calls
from tpu_lowering.demo import decoder, kernels, model, text_tokens

TEXT = "A kernel that writes every element of a buffer needs nobody to fill it first. " * 3
LAYERS = 4


def test_weights_are_those_of_the_untouched_model() -> None:
    plain, swapped = decoder(kernels=False).state_dict(), decoder(kernels=True).state_dict()
    assert list(plain) == list(swapped)
    assert all(torch.equal(plain[name], swapped[name]) for name in plain)


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    decoder(kernels=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_untouched_model_stays_untouched() -> None:
    decoder(kernels=True)
    plain = decoder(kernels=False)
    assert isinstance(plain, LlamaForCausalLM)
    assert not any(isinstance(module, (model.RMSNorm, model.MLP)) for module in plain.modules())
    assert plain.config._attn_implementation == "eager"


@pytest.mark.parametrize("length", [64, 128])
def test_logits_agree_with_transformers(length: int, generated: Callable[..., None]) -> None:
    tokens = text_tokens(TEXT, length)
    for kernel in (kernels.rms_norm_into, kernels.swiglu_into, kernels.causal_attention_into):
        generated(model.__dict__, kernel)
    expected = decoder(kernels=False)(tokens, use_cache=False).logits
    actual = decoder(kernels=True)(tokens, use_cache=False).logits
    assert not actual.requires_grad
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=3e-6)


def test_attention_with_large_scores_agrees_with_torch(runner: Callable[..., Callable[..., None]]) -> None:
    generator = torch.Generator().manual_seed(0)
    q = 4 * torch.randn(2, 4, 128, 64, generator=generator)
    k, v = (torch.randn(2, 2, 128, 64, generator=generator) for _ in range(2))
    out = torch.full((4, 256, 64), torch.nan)
    runner(kernels.causal_attention_into)(q.reshape(4, 256, 64), k.flatten(0, 1), v.flatten(0, 1), out, 0.125)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out.view(q.shape), expected, rtol=1e-4, atol=1e-5)


def test_capture_is_one_graph_with_every_kernel() -> None:
    (graph,) = captured_graphs(decoder(kernels=True), text_tokens(TEXT, 128), use_cache=False)
    calls = kernel_calls(graph)
    assert len(calls) == 2 * LAYERS + 1 + LAYERS + LAYERS  # norms, MLPs, attentions
    allocations = {call.kwargs["tensor_args"]["out"].target for call in calls}
    assert allocations == {torch.ops.aten.empty_like.default}


def test_swapped_model_refuses_padding() -> None:
    tokens = text_tokens(TEXT, 8)
    with pytest.raises(ValueError, match=r"expected no attention mask, got one of shape \(1, 8\)"):
        decoder(kernels=True)(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)


def test_swap_refuses_another_activation() -> None:
    other = decoder(kernels=False)
    other.config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="expected hidden_act 'silu', got 'gelu'"):
        model.swap_in_kernels(other)


def test_attention_refuses_a_mask() -> None:
    q = torch.zeros(1, 4, 8, 64)
    k = torch.zeros(1, 2, 8, 64)
    with pytest.raises(ValueError, match=r"got mask \(1, 1, 8, 8\)"):
        model.causal_attention(torch.nn.Module(), q, k, k, torch.zeros(1, 1, 8, 8), 0.125)


def test_text_tokens_are_bytes() -> None:
    assert text_tokens("añb", 4).tolist() == [[97, 195, 177, 98]]
    with pytest.raises(ValueError, match="at least 5 bytes, got 4"):
        text_tokens("añb", 5)

"""A small Llama-style decoder, as `transformers` ships it and with Helion kernels swapped in."""

from tpu_lowering.demo.model import config, decoder, project_text, swap_in_kernels, text_tokens

__all__ = ["config", "decoder", "project_text", "swap_in_kernels", "text_tokens"]

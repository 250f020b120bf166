"""Models of the suite, wider and deeper than the tests have them: a forward in inference mode, or a training step."""

from __future__ import annotations

import copy
import dataclasses
import functools
import unittest.mock
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench import zoo
from bench.cpu import sides

SIDES = ("eager", "ours", "inductor")

WIDTH, DEPTH, LENGTH = 4, 2, 8
"""How many times the suite's: hidden size 256, 4 layers, sequences of 128."""

FACTORS: dict[str, int] = {
    **dict.fromkeys((
        "hidden_size", "intermediate_size", "head_dim", "n_embd", "ffn_dim", "word_embed_proj_dim", "dim", "hidden_dim",
        "d_model", "d_kv", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "time_step_rank", "projection_dim",
    ), WIDTH),
    **dict.fromkeys((
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
        "decoder_layers",
    ), DEPTH),
    **dict.fromkeys((
        "max_position_embeddings", "n_positions", "max_target_positions", "sliding_window", "position_buckets",
    ), LENGTH),
}  # fmt: skip
"""What a value of a config is multiplied by, by its name."""


def enlarged(config: Any) -> Any:
    """A copy of a transformers config, and of those in it, with the sizes of ``FACTORS`` multiplied."""
    config = copy.deepcopy(config)
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            setattr(config, name, enlarged(value))
        elif name in FACTORS and type(value) is int:
            setattr(config, name, FACTORS[name] * value)
        elif name == "layer_types" and value:
            setattr(config, name, list(value) * DEPTH)
    return config


def enlarge(model: nn.Module) -> nn.Module:
    """A larger model of the same kind; the model itself if it has no config."""
    config = getattr(model, "config", None)
    if config is None:
        return model
    larger = type(model)(enlarged(config))
    if "loss_type" in vars(model):
        larger.loss_type = model.loss_type
    return larger


def longer_inputs(chosen: zoo.Model) -> zoo.Inputs:
    """Its inputs, with sequences ``LENGTH`` times as long; images and sounds have the suite's sizes."""
    sizes = {"LENGTH": zoo.LENGTH * LENGTH, "PADDING": zoo.PADDING * LENGTH}
    with unittest.mock.patch.multiple(zoo, **sizes):
        return chosen.inputs()


@dataclasses.dataclass(frozen=True)
class Form:
    """What is measured of a model.

    Attributes:
        trained: forward and backward of its loss; else its forward in inference mode.
        dtype: of its parameters, buffers and inputs, where they are floats.
        tolerance: relative and absolute, of results and gradients, against eager's.
    """

    trained: bool = False
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-4


def measure(name: str, rounds: int, small: bool = False, form: Form = Form()) -> dict[str, Any]:
    """The entry of one model; ``small`` leaves it as the suite has it."""

    def build(side: str) -> Callable[[], Any]:
        chosen = zoo.MODELS[name]
        with torch.inference_mode(False):
            torch.manual_seed(0)
            model = chosen.build() if small else enlarge(chosen.build())
            model, inputs = model.train(form.trained), chosen.inputs() if small else longer_inputs(chosen)
            model = model.to(form.dtype)
            inputs = {key: x.to(form.dtype) if x.is_floating_point() else x for key, x in inputs.items()}
        seen.update(parameters=sum(p.numel() for p in model.parameters()), inputs=_shapes(inputs))
        step, arguments = chosen.step.__func__, (chosen, model, inputs)
        run = trained if form.trained else functools.partial
        check = sides.closeness(run(step, *arguments)(), form.tolerance, form.tolerance)
        if side == "eager":
            return run(step, *arguments)
        compiled = run(sides.compiled(step, "helion_tpu" if side == "ours" else side), *arguments)
        check(compiled())
        return compiled

    seen: dict[str, Any] = {}
    built = sides.Sides({side: functools.partial(build, side) for side in SIDES})
    measured = built.measure(rounds, inference=not form.trained)
    note = f"{seen['parameters'] / 1e6:.2f} M parameters, {seen['inputs']}"
    return {"sides": measured, "note": note}


def trained(step: Callable[..., Any], chosen: zoo.Model, model: nn.Module, inputs: zoo.Inputs) -> Callable[[], Any]:
    """A function that computes a loss and its gradients, and returns both."""

    def run() -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        model.zero_grad()
        loss, _ = step(chosen, model, inputs)
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in model.parameters()]

    return run


def _shapes(inputs: zoo.Inputs) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items() if name != "labels")

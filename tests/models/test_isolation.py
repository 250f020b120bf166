"""Models leave nothing behind, and threads do not disturb each other: two small ones, and on request the suite."""

from __future__ import annotations

import copy
import textwrap
import threading

import pytest
import torch
from torch import nn

from bench.zoo import MODELS, Inputs
from tests.backend.alone import STATE, run_alone
from tests.models.model_training import assert_equal, train
from tests.models.small import SMALL

KNOWN = {**MODELS, **SMALL}


@pytest.mark.parametrize(
    "names", [tuple(SMALL), pytest.param(tuple(MODELS), marks=pytest.mark.large)], ids=["small", "all"]
)
def test_no_global_state_is_changed(names: tuple[str, ...]) -> None:
    """By compiling, training and optimising the models one after the other, in one process."""
    run_alone(
        STATE
        + textwrap.dedent(
            f"""
            from tests.models.test_isolation import KNOWN
            ready = [(KNOWN[name], KNOWN[name].build(), KNOWN[name].inputs()) for name in {names!r}]
            for chosen, model, inputs in ready:
                chosen.step(model, inputs)[0].backward()  # the first-use settings of transformers
            before = state()
            for chosen, model, inputs in ready:
                run = torch.compile(chosen.step, backend="helion_tpu", fullgraph=True)
                run(model, inputs)[0].backward()
                with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                    run(model, inputs)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                torch.compile(optimizer.step, backend="helion_tpu")()
                torch._dynamo.reset()
            compare(before, state())
            """
        )
    )


def prepared(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    return KNOWN[name].build(), KNOWN[name].inputs()


@pytest.mark.parametrize(
    "names", [tuple(SMALL), pytest.param(("distilbert", "resnet"), marks=pytest.mark.large)], ids=["small", "large"]
)
def test_two_threads_compile_and_train_different_models(names: tuple[str, ...]) -> None:
    """What one thread computes, with compiling in both at once: loss, result and gradients to the last bit.

    The optimiser's step is eager's own, and torch's arithmetic in another thread may differ in the last bit.
    """
    ready = {name: prepared(name) for name in names}
    steps = {name: torch.compile(KNOWN[name].step, backend="helion_tpu", fullgraph=True) for name in names}
    alone = {name: train(copy.deepcopy(ready[name][0]), ready[name][1], steps[name]) for name in names}
    torch._dynamo.reset()
    together: dict[str, dict[str, torch.Tensor]] = {}
    failures: list[BaseException] = []
    start = threading.Barrier(len(names))

    def work(name: str) -> None:
        model, inputs = ready[name]
        try:
            start.wait()
            together[name] = train(model, inputs, steps[name])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for name in names:
        for key, value in alone[name].items():
            if key.startswith(("loss", "result", "gradient")) and key != "loss after":
                assert torch.equal(together[name][key], value), f"{name}: {key}"
        assert_equal(together[name], alone[name])

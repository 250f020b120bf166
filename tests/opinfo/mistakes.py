"""Calls that eager refuses: torch's operators at types that they do not take, at mixed types, and their error inputs.

``python -m tests.opinfo.mistakes [--only NAME] [--part 0/4]`` makes each call in eager and compiled, and prints those
that end otherwise: an exception where there is none in eager, none where there is one, or one of another kind.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree

from tests.opinfo.calls import Instance, clone, seed
from tests.opinfo.tasks import chosen_entries
from tpu_lowering.errors import TpuLoweringError

BACKEND = "helion_tpu"
REFERENCE = "aot_eager"
TYPES = (
    torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.complex64,
)  # fmt: skip
OF_VALUES = ("ZeroDivisionError", "out of range", "out of bounds", "singular", "not positive-definite")
SAMPLES = 2  # of an entry, whose tensors are given other types
ACCEPTED = 4  # calls of an entry that eager accepts, which are made too


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a call ends in eager and compiled: the kinds of exceptions, or the code of one of ours; "" for a result.

    Attributes:
        verdict: "same"; "coded", for a refusal of ours with a code of its own; "torch", where ``aot_eager`` does not
            end like eager either, so that Dynamo or AOTAutograd makes the difference; "other".
    """

    entry: str
    what: str
    eager: str
    compiled: str
    message: str
    verdict: str


def calls(info: Any) -> Iterator[tuple[str, Callable[[], Instance]]]:
    """Calls of an entry, each with what is wrong about it."""
    yield from _of_other_types(info)
    yield from _error_inputs(info)


def _of_other_types(info: Any) -> Iterator[tuple[str, Callable[[], Instance]]]:
    known = [t for t in (torch.float32, torch.int64, torch.complex64) if info.supports_dtype(t, "cpu")]
    if not known:
        return
    seed()
    samples = list(info.sample_inputs("cpu", known[0]))
    for number, sample in list(enumerate(samples))[:: max(1, len(samples) // SAMPLES)][:SAMPLES]:
        given = ((sample.input, *sample.args), dict(sample.kwargs))
        count = sum(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(given))
        which = [("all", range(count)), *((f"tensor {at}", [at]) for at in range(count if 1 < count < 4 else 0))]
        for dtype in TYPES:
            for name, places in which:
                what = f"sample {number}, {name} of {str(dtype)[6:]}"
                yield what, lambda given=given, places=places, dtype=dtype: _converted(info.op, given, places, dtype)


def _converted(function: Any, given: Any, places: Any, dtype: torch.dtype) -> Instance:
    leaves, tree = pytree.tree_flatten(given)
    tensors = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    chosen = {tensors[place] for place in places}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for at in tensors:
            made = clone(leaves[at].detach())
            leaves[at] = made.to(dtype) if at in chosen else made
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return Instance(function, args, kwargs)


def _error_inputs(info: Any) -> Iterator[tuple[str, Callable[[], Instance]]]:
    if info.error_inputs_func is None:
        return
    seed()
    for number, given in enumerate(info.error_inputs("cpu")):
        sample = given.sample_input
        arguments = ((sample.input, *sample.args), dict(sample.kwargs))
        yield f"error input {number}", lambda arguments=arguments: _converted(info.op, arguments, (), torch.float32)


def kind_of(error: BaseException) -> str:
    """The code of an error of ours, or the class of an exception that eager knows."""
    error = getattr(error, "inner_exception", None) or error
    if isinstance(error, TpuLoweringError):
        return error.code
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ in ("builtins", "torch._C"))


def ending(make: Callable[[], Instance], backend: str | None) -> tuple[str, str]:
    """The kind of the exception that a call ends with, and its first line."""
    instance = make()
    torch._dynamo.reset()
    function = apply if backend is None else torch.compile(apply, backend=backend, fullgraph=True)
    seed()
    try:
        function(instance.function, instance.args, instance.kwargs)
    except Exception as error:
        return kind_of(error), str(error).strip().partition("\n")[0][:150]
    return "", ""


def apply(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def endings(name: str, info: Any) -> Iterator[Ending]:
    """How the calls of an entry end. Of those that eager accepts, only some are compiled."""
    accepted = 0
    for what, make in calls(info):
        try:
            eager, said = ending(make, None)
        except Exception:  # in the conversion of the sample
            continue
        accepted += eager == ""
        if eager == "" and accepted > ACCEPTED:
            continue
        compiled, message = ending(make, BACKEND)
        verdict = "same" if compiled == eager else "coded" if compiled.startswith("TL") else "other"
        if verdict == "other" and any(text in said for text in OF_VALUES):
            verdict = "values"
        if verdict == "other" and ending(make, REFERENCE)[0] != eager:
            verdict = "torch"
        yield Ending(name, what, eager, compiled, message or said, verdict)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo.mistakes", description=__doc__)
    parser.add_argument("--only", action="append")
    parser.add_argument("--part", default="0/1")
    chosen = parser.parse_args()
    part, parts = map(int, chosen.part.split("/"))
    known = chosen_entries("op", chosen.only)
    count: collections.Counter[str] = collections.Counter()
    for name in list(known)[part::parts]:
        for one in endings(name, known[name]):
            count[f"{'refused' if one.eager else 'accepted'}: {one.verdict}"] += 1
            if one.verdict != "same":
                print(one, flush=True)
    print(dict(count))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()

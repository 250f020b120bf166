"""Strides of results where arguments are not row-major: torch's operators on permuted, channels-last and expanded ones.

``python -m tests.opinfo.strides [--only NAME] [--part 0/4]`` captures each call, without compiling it, and prints those
whose results have other strides than eager's. A view of a result then would read other elements.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from tests.opinfo.calls import Instance, clone, seed, tensors_of
from tests.opinfo.tasks import chosen_entries
from tpu_lowering.capture import mistakes
from tpu_lowering.normalise.decompositions import decompositions
from tpu_lowering.normalise.eager_layouts import with_eagers_layouts

SAMPLES = 3  # of an entry


def permuted(tensor: torch.Tensor) -> torch.Tensor:
    order = list(reversed(range(tensor.ndim)))
    return tensor.permute(order).contiguous().permute(order)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The second dimension innermost; of a matrix, that is row-major."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.ndim > 2 else tensor


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    """The first two dimensions in the other order."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.ndim > 1 else tensor


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].expand_as(tensor) if tensor.ndim > 0 and tensor.shape[0] > 1 else tensor


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "permuted": permuted,
    "channels last": channels_last,
    "swapped": swapped,
    "expanded": expanded,
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A call with a result of other strides, or that fails where eager does not."""

    entry: str
    what: str
    eager: str
    got: str


def calls(info: Any, samples: int) -> Iterator[tuple[str, Callable[[], Instance]]]:
    """Calls of an entry on arguments of each layout: all of them, or one tensor of several."""
    dtypes = [t for t in (torch.float32, torch.int64, torch.complex64) if info.supports_dtype(t, "cpu")]
    if not dtypes:
        return
    seed()
    every = list(info.sample_inputs("cpu", dtypes[0]))
    chosen = list(enumerate(every))[:: max(1, len(every) // samples)][:samples]
    for (number, sample), (name, layout) in itertools.product(chosen, LAYOUTS.items()):
        given = ((sample.input, *sample.args), dict(sample.kwargs))
        count = len(tensors_of(given))
        for places in (range(count), *([at] for at in range(count if 1 < count < 4 else 0))):
            what = f"sample {number}, {name}, tensors {list(places)}"
            yield what, functools.partial(laid_out, info.op, given, layout, places)


def laid_out(function: Any, given: Any, layout: Callable[..., Any], places: Sequence[int]) -> Instance:
    leaves, tree = pytree.tree_flatten(given)
    tensors = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    for number, at in enumerate(tensors):
        made = clone(leaves[at].detach())
        leaves[at] = layout(made) if number in places else made
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return Instance(function, args, kwargs)


def strides(result: Any) -> list[Any]:
    """Of the dimensions of each tensor that have several elements."""
    return [
        [step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1] if x.numel() else None
        for x in tensors_of(result)
        if x.layout == torch.strided
    ]


def outcome(instance: Instance, captured: bool) -> str:
    """The strides of a call's results, or an error in one line."""
    seed()
    try:
        return str(strides(_captured(instance) if captured else instance.function(*instance.args, **instance.kwargs)))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"


def _captured(instance: Instance) -> Any:
    """The results of a call, as fake tensors that a capture with our decompositions gives."""
    leaves, tree = pytree.tree_flatten((instance.args, instance.kwargs))
    places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        given = list(leaves)
        for at, tensor in zip(places, tensors, strict=True):
            given[at] = tensor
        args, kwargs = pytree.tree_unflatten(given, tree)
        return pytree.tree_leaves(instance.function(*args, **kwargs))

    with enable_python_dispatcher():
        graph = make_fx(
            torch.func.functionalize(function, remove="mutations"),
            decomposition_table=mistakes.refusing(with_eagers_layouts(decompositions())),
            tracing_mode="fake",
        )(*(leaves[at] for at in places))
    (results,) = graph.graph.output_node().args
    return [node.meta["val"] for node in pytree.tree_leaves(results) if isinstance(node, torch.fx.Node)]


def differences(name: str, info: Any, samples: int = SAMPLES) -> Iterator[tuple[str, Difference | None]]:
    """Each call of an entry that eager accepts, with how it differs."""
    for what, make in calls(info, samples):
        try:
            expected = outcome(make(), False)
        except Exception:  # a sample that cannot be laid out so
            continue
        if "rror: " in expected:
            continue
        got = outcome(make(), True)
        yield what, None if got == expected else Difference(name, what, expected, got)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo.strides", description=__doc__)
    parser.add_argument("--only", action="append")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    chosen = parser.parse_args()
    part, parts = map(int, chosen.part.split("/"))
    known = chosen_entries("op", chosen.only)
    count: collections.Counter[str] = collections.Counter()
    for name in list(known)[part::parts]:
        for _, difference in differences(name, known[name], chosen.samples):
            count["equal" if difference is None else "refused" if "rror: " in difference.got else "other"] += 1
            if difference is not None:
                print(difference, flush=True)
    print(dict(count))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()

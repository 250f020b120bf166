"""Functionalised calls, decoded as torch regenerates their arguments, and encoded again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.ir.functionalized_calls import decoded

SCHEMA = "(Tensor x, Tensor(a!) a, Tensor(b!)[] more, Tensor(c!)? none, Tensor(d!)[]? nothing) -> ()"
torch.library.define("test_functionalized_calls::write", SCHEMA)
OVERLOAD: Any = torch.ops.test_functionalized_calls.write.default
VIEWS: dict[str, Any] = {
    "_a_base_index": 1, "_a_slice_dim": 1, "_a_slice_start": 2, "_a_slice_end": 5,
    "_more_length": 3, "_more_0_base_index": 0, "_more_1_base_index": None,
    "_more_2_base_index": 1, "_more_2_size": (2, 3), "_more_2_stride": (1, 2), "_more_2_storage_offset": 1,
    "_none_base_index": None, "_nothing_length": None,
}  # fmt: skip


def called(**given: Any) -> fx.Node:
    graph = fx.Graph()
    x, first, second = (graph.placeholder(name) for name in ("x", "first", "second"))
    kwargs = {"x": x, **given, "_all_bases": [first, second]}
    return graph.call_function(compat.auto_functionalized_v2, (OVERLOAD,), kwargs)


def test_arguments_are_what_torch_regenerates() -> None:
    from torch._higher_order_ops.auto_functionalize import read_view_information_from_args

    bases = [torch.arange(4.0), torch.arange(24.0).view(4, 6)]
    names = ["a", "more", "none", "nothing"]
    types = [a.type for a in OVERLOAD._schema.arguments if a.name in names]
    given = dict(VIEWS)
    expected = read_view_information_from_args(names, types, given, bases)

    def regenerated(view: Any) -> Any:
        if isinstance(view, list):
            return [regenerated(one) for one in view]
        return None if view is None else view.regenerate_view(bases)

    found = decoded(called(**VIEWS)).arguments(lambda view: view.of(bases[view.base]))
    assert list(found) == ["x", *names]
    assert found["none"] is found["nothing"] is found["more"][1] is None
    pairs = zip([found["a"], *found["more"]], [regenerated(expected["a"]), *regenerated(expected["more"])], strict=True)
    for ours, theirs in ((a, b) for a, b in pairs if b is not None):
        assert ours.data_ptr() == theirs.data_ptr()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, check_stride=True)


def test_encoded_again() -> None:
    call = decoded(called(**VIEWS))
    keywords: dict[str, Any] = {}
    for name in call.views:
        keywords |= call.encoded(name, {0: 0, 1: 1})
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in VIEWS.items()}
    assert keywords == wanted
    assert call.encoded("a", {1: 7})["_a_base_index"] == 7
    assert call.bases_of("more") == [0, 1]

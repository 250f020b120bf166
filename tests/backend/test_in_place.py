"""Buffers that a program updates in part are updated in place; nobody can tell but by the time it takes."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tpu_lowering import compat, errors
from tpu_lowering.runtime import owned_memory

ROWS, WIDTH = 64, 256  # 64 KiB, the least that is moved


def buffer() -> torch.Tensor:
    return torch.arange(float(ROWS * WIDTH)).reshape(ROWS, WIDTH).clone()


def step(cache: torch.Tensor, at: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    cache.index_copy_(0, at, row)
    return cache.sum(0) + cache[1]


def compiled(function: Callable[..., Any] = step, **settings: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, **settings)


def is_moved(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() in owned_memory._known


AT, ROW = torch.tensor([3]), torch.ones(1, WIDTH)

UPDATES: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]] = {
    "index_copy": lambda c, at, row: c.index_copy_(0, at, row),
    "index_put": lambda c, at, row: c.index_put_((at,), row),
    "accumulated": lambda c, at, row: c.index_put_((at,), row, accumulate=True),
    "assigned": lambda c, at, row: c.__setitem__(at, row),
    "a slice": lambda c, at, row: c[4:6].copy_(row.expand(2, -1)),
    "every other row": lambda c, at, row: c[::2].copy_(row.expand(ROWS // 2, -1)),
    "a column": lambda c, at, row: c[:, 7].fill_(2.0),
    "index_add": lambda c, at, row: c.index_add_(0, at, row),
    "scatter": lambda c, at, row: c.scatter_(0, at.expand(1, WIDTH), row),
    "scatter_add": lambda c, at, row: c.scatter_add_(0, at.expand(1, WIDTH), row),
    "index_fill": lambda c, at, row: c.index_fill_(0, at, 5.0),
    "twice": lambda c, at, row: c.index_copy_(0, at, row).index_copy_(0, at + 1, row * 2),
    "a view of it": lambda c, at, row: c.view(-1)[10:20].fill_(3.0),
    "after a read of it": lambda c, at, row: c.index_copy_(0, at, c[5:6] * 2 + row),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_updates_are_in_place(update: Callable[..., Any]) -> None:
    def function(c: torch.Tensor, at: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        before = c.sum()
        update(c, at, row)
        return before + c[at] * 2 + c.amax(0)

    run, ours, eagers = compiled(function), buffer(), buffer()
    version, places = ours._version, set[int]()
    for number in range(3):
        at, row = AT + number, ROW * number
        torch.testing.assert_close(run(ours, at, row), function(eagers, at, row))
        torch.testing.assert_close(ours, eagers, rtol=0, atol=0)
        places.add(ours.data_ptr())
        assert is_moved(ours)
    assert len(places) == 1 and ours._version > version


def test_a_position_beyond_the_end_writes_nothing() -> None:
    run, ours = compiled(), buffer()
    run(ours, torch.tensor([ROWS + 5]), ROW)
    torch.testing.assert_close(ours, buffer(), rtol=0, atol=0)


def test_memory_in_another_order() -> None:
    run, ours, eagers = compiled(), torch.empty_strided((ROWS, WIDTH), (1, ROWS)).copy_(buffer()), buffer()
    for number in range(3):
        torch.testing.assert_close(run(ours, AT + number, ROW), step(eagers, AT + number, ROW))
        torch.testing.assert_close(ours, eagers, rtol=0, atol=0)
    assert is_moved(ours) and ours.stride() == (1, ROWS)


def test_buffers_of_a_module_and_several_programs() -> None:
    class Cache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", torch.zeros(ROWS, WIDTH))
            self.register_buffer("values", torch.zeros(ROWS, WIDTH))

        def forward(self, at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            self.keys[at] = rows
            self.values[at] = rows * 2
            return self.keys + self.values

    eager, ours = Cache(), Cache()
    run = compiled(ours)
    with torch.no_grad():
        for first, last in ((0, 10), (10, 11), (11, 12), (12, 20), (20, 21)):  # two sizes: two programs
            at, rows = torch.arange(first, last), torch.randn(last - first, WIDTH)
            torch.testing.assert_close(run(at, rows), eager(at, rows))
            torch.testing.assert_close(ours.state_dict(), eager.state_dict())
    assert is_moved(ours.keys) and is_moved(ours.values)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes(mode: Callable[[], Any]) -> None:
    run = compiled()
    with mode():
        ours, eagers = buffer(), buffer()
        for number in range(3):
            torch.testing.assert_close(run(ours, AT + number, ROW), step(eagers, AT + number, ROW))
            torch.testing.assert_close(ours, eagers, rtol=0, atol=0)
        assert is_moved(ours)


def test_memory_goes_with_the_tensor() -> None:
    run, ours = compiled(), buffer()
    run(ours, AT, ROW)
    owner, place = weakref.ref(owned_memory._known[ours.data_ptr()]), ours.data_ptr()
    view = ours[2:]
    del ours
    gc.collect()
    assert float(view[1, 0]) == 1 and owner() is not None
    del view
    gc.collect()
    assert owner() is None and place not in owned_memory._known


def test_a_tensor_saved_for_a_backward_is_missed() -> None:
    run, ours = compiled(), buffer()
    run(ours, AT, ROW)
    weight = torch.ones(WIDTH, requires_grad=True)
    total = (weight * ours).sum()
    run(ours, AT + 1, ROW)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_in_a_graph_that_records_gradients() -> None:
    def function(c: torch.Tensor, at: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            c.index_copy_(0, at, row.detach())
        return (c * row).sum()

    results: list[Any] = []
    for run in (compiled(function), function):
        cache, row = buffer(), ROW.clone().requires_grad_()
        for number in range(3):
            run(cache, AT + number, row).backward()
        results.append((cache, row.grad))
    torch.testing.assert_close(results[0], results[1])


def test_threads_share_a_cache() -> None:
    run, ours = compiled(), buffer()
    run(ours, AT, ROW)

    def work(number: int) -> None:
        for _ in range(50):
            run(ours, torch.tensor([number]), torch.full((1, WIDTH), float(number)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))  # raises what a thread raised
    expected = buffer()
    expected[:8] = torch.arange(8.0)[:, None]
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def from_a_file(folder: Any) -> torch.Tensor:
    return torch.from_file(str(folder / "cache"), shared=True, size=ROWS * WIDTH).view(ROWS, WIDTH).copy_(buffer())


NOT_MOVED: dict[str, Callable[[Any], tuple[torch.Tensor, Any]]] = {
    "a view": lambda folder: ((whole := torch.zeros(2 * ROWS, WIDTH))[:ROWS], whole),
    "one that has a view": lambda folder: ((whole := buffer()), whole[1:]),
    "one with .data": lambda folder: ((whole := buffer()), whole.data),
    "one whose storage is held": lambda folder: ((whole := buffer()), whole.untyped_storage()),
    "one that was a NumPy array": lambda folder: ((whole := buffer()), whole.numpy()),
    "NumPy's": lambda folder: (torch.from_numpy(array := np.zeros((ROWS, WIDTH), np.float32)), array),
    "one that NumPy reads": lambda folder: ((whole := buffer()), np.from_dlpack(whole)),
    "one in a capsule": lambda folder: ((whole := buffer()), torch.utils.dlpack.to_dlpack(whole)),
    "a file's": lambda folder: (from_a_file(folder), None),
    "a shared one": lambda folder: (buffer().share_memory_(), None),
    "a saved one": lambda folder: ((whole := buffer()), (torch.ones(WIDTH, requires_grad=True) * whole).sum()),
    "a small one": lambda folder: (torch.zeros(8, WIDTH), None),
    "one of several in a storage": lambda folder: (
        torch.zeros(2 * ROWS * WIDTH)[: ROWS * WIDTH].view(ROWS, WIDTH),
        None,
    ),
}


@pytest.mark.parametrize("make", NOT_MOVED.values(), ids=NOT_MOVED)
def test_what_somebody_else_can_see_is_not_moved(
    make: Callable[[Any], tuple[torch.Tensor, Any]], tmp_path: Any
) -> None:
    run = compiled()
    cache, other = make(tmp_path)
    expected, place = cache.clone(), cache.data_ptr()
    for number in range(2):
        torch.testing.assert_close(run(cache, AT + number, ROW), step(expected, AT + number, ROW))
        torch.testing.assert_close(cache, expected, rtol=0, atol=0)
    assert cache.data_ptr() == place and not is_moved(cache)
    del other


class World:
    """A cache and all that was made of it."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run, self.cache, self.kept = run, buffer(), list[Any]()

    def do(self, action: str, number: int) -> Any:
        if action == "step":
            return self.run(self.cache, torch.tensor([number]), torch.full((1, WIDTH), float(number)))
        if action == "write":
            self.cache[number] = -1.0
        elif action == "view":
            self.kept.append(self.cache[number:])
        elif action == "write to a view":
            for kept in self.kept:
                if isinstance(kept, torch.Tensor):
                    kept.mul_(2)
        elif action == "numpy":
            self.kept.append(self.cache.numpy())
        elif action == "dlpack":
            self.kept.append(np.from_dlpack(self.cache))
        elif action == "data":
            self.kept.append(self.cache.data)
        elif action == "forget":
            self.kept.clear()
        elif action == "copy":
            self.cache = copy.deepcopy(self.cache)
        elif action == "save":
            file = io.BytesIO()
            torch.save(self.cache, file)
            file.seek(0)
            self.cache = torch.load(file)
        elif action == "share":
            self.forget_arrays()
            self.cache.share_memory_()
        elif action == "set data":
            self.forget_arrays()
            self.cache.data = self.cache * 1.5
        return None

    def forget_arrays(self) -> None:
        """NumPy's arrays hold a tensor, not its memory; torch itself gives that up."""
        self.kept = [one for one in self.kept if isinstance(one, torch.Tensor)]

    def seen(self) -> list[Any]:
        return [torch.as_tensor(np.array(one)) for one in (self.cache, *self.kept)]


ACTIONS = (
    "step", "step", "step", "write", "view", "write to a view", "numpy", "dlpack", "data", "forget", "copy", "save",
    "share", "set data",
)  # fmt: skip
histories = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, ROWS - 1)), min_size=4, max_size=14)


def test_any_history_is_eagers() -> None:
    run = compiled()
    run(buffer(), AT, ROW)

    @seed(0)
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=(Phase.generate, Phase.shrink))  # fmt: skip
    @given(histories)
    def check(history: list[tuple[str, int]]) -> None:
        ours, eagers = World(run), World(step)
        for action, number in history:
            torch.testing.assert_close(ours.do(action, number), eagers.do(action, number))
            torch.testing.assert_close(ours.seen(), eagers.seen(), rtol=0, atol=0)

    check()


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def interrupted_before_arrays(call: compat.DirectCall, arrays: Any, kept: compat.Results) -> Any:
    kept.raw.append(call._run(arrays))
    interrupt()


INTERRUPTIONS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "when the program ended": (compat.DirectCall, "into", interrupted_before_arrays),
    "before the array is entered": (owned_memory.OwnedMemory, "replace", interrupt),
}


@pytest.mark.parametrize(("owner", "name", "instead"), INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_an_interruption_loses_nothing(
    owner: type, name: str, instead: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does it."""
    run, ours = compiled(), buffer()
    run(ours, AT, ROW)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, instead)
        with pytest.raises(KeyboardInterrupt):
            run(ours, AT + 1, ROW)
    gc.collect()
    others = [torch.full((ROWS, WIDTH), -1.0) for _ in range(8)]  # memory that was freed would be theirs
    expected = buffer()
    expected[3:5] = 1.0
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    run(ours, AT + 2, ROW)
    expected[5] = 1.0
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert is_moved(ours) and len(others) == 8


def test_a_failed_call_that_took_the_buffer_is_told() -> None:
    """A program that fails after XLA has taken the memory over leaves nothing to read or to update."""

    def fails(call: compat.DirectCall, arrays: Any, kept: compat.Results) -> Any:
        call._run(arrays)
        raise RuntimeError("out of memory")

    run, ours = compiled(), buffer()
    run(ours, AT, ROW)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compat.DirectCall, "into", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(ours, AT + 1, ROW)
    with pytest.raises(errors.TpuLoweringError) as raised:
        run(ours, AT + 2, ROW)
    assert str(raised.value) == (
        f"[TL114] buffer lost in a call that failed: float32[{ROWS}, {WIDTH}]\n"
        "  why  expected a buffer whose last update ended, got one that a failed call had taken\n"
        "  fix  make the buffer anew, and find out why the call before failed"
    )

"""Processes that were forked, and first compilations in several threads."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import pathlib
import pickle
import threading
import tomllib
from typing import Any

import pytest
import torch
from torch._dynamo.backends import registry

from tests.processes.children import run
from tpu_lowering import errors

FORKS = """
    import os
    import signal
    import sys

    import torch

    import tpu_lowering

    @tpu_lowering.kernel_op("forked::double")
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    first = torch.compile(lambda x: x * 2 + 1, backend="helion_tpu")
    second = torch.compile(lambda x: x * 3 + 1, backend="helion_tpu")
    x = torch.ones(3)

    def in_child(work):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                print("result", work().tolist())
            except Exception as error:
                inner = getattr(error, "inner_exception", error)
                print(getattr(inner, "code", repr(error)))
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child hung"
"""


def test_a_process_that_is_forked_before_jax_ran_is_its_own(tmp_path: pathlib.Path) -> None:
    body = """
    in_child(lambda: first(x))
    in_child(lambda: double(x))
    print(first(x).tolist())
    """
    expected = ["result [3.0, 3.0, 3.0]", "result [2.0, 2.0, 2.0]", "[3.0, 3.0, 3.0]"]
    assert run(FORKS + body, tmp_path).splitlines() == expected


def test_a_process_that_is_forked_after_jax_ran_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    """A program of the parent's, a new program, and a kernel in eager torch; the parent goes on."""
    body = """
    first(x)
    in_child(lambda: first(x))
    in_child(lambda: second(x))
    in_child(lambda: double(x))
    print(first(x).tolist())
    """
    assert run(FORKS + body, tmp_path).splitlines() == ["TL111", "TL111", "TL111", "[3.0, 3.0, 3.0]"]


LOADER = """
    import torch
    from torch.utils.data import DataLoader, Dataset

    augment = torch.compile(lambda x: x * 2 + 1, backend="helion_tpu")

    class Augmented(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return augment(torch.full((2,), float(index)))

    def total(workers=2, **given):
        return sum(batch.sum().item() for batch in DataLoader(Augmented(), batch_size=2, num_workers=workers, **given))
"""


def test_workers_of_a_data_loader_are_refused_with_the_remedy(tmp_path: pathlib.Path) -> None:
    body = """
    if __name__ == "__main__":
        augment(torch.ones(2))
        try:
            total(multiprocessing_context="fork", timeout=100)
        except Exception as error:
            print(error)
    """
    printed = run(LOADER + body, tmp_path)  # a worker computes with one thread, which Dynamo compiles anew for
    assert "[TL111] process was forked after JAX had run: process " in printed
    assert (
        "  fix  start processes with 'spawn', such as DataLoader(..., multiprocessing_context='spawn'), or call "
        in printed
    )


def test_workers_of_a_data_loader_compile_what_they_call(tmp_path: pathlib.Path) -> None:
    """By the remedy; and forked ones, where the main process has not run JAX."""
    body = """
    if __name__ == "__main__":
        print(total(multiprocessing_context="fork", timeout=100))
        augment(torch.ones(2))
        print(total(workers=1, multiprocessing_context="spawn", timeout=100))
    """
    assert run(LOADER + body, tmp_path).splitlines() == ["72.0", "72.0"]


def test_the_text_of_a_forked_process() -> None:
    from tpu_lowering.ir import forks

    before = forks._owner, forks._is_owner
    try:
        forks._owner, forks._is_owner = 1, False
        with pytest.raises(errors.TpuLoweringError) as caught:
            forks.refuse_after_fork()
    finally:
        forks._owner, forks._is_owner = before
    head, *rest = str(caught.value).splitlines()
    assert head.startswith("[TL111] process was forked after JAX had run: process ") and head.endswith("forked from 1")
    assert rest == [
        "  why  expected a process of its own, because JAX's threads do not survive os.fork(), got one that was forked after JAX had run",
        "  fix  start processes with 'spawn', such as DataLoader(..., multiprocessing_context='spawn'), or call compiled functions and kernels in the main process only",
    ]


def test_errors_travel_between_processes() -> None:
    error = errors.refuse("TL301", "aten.foo", "expected a, got b", "do c", "model.py:1 in f: foo(x)")
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.refusal) == (str(error), error.refusal)
    retold = errors.TpuLoweringError(f"Caught in worker 0.\nOriginal Traceback:\n  foo\ntpu_lowering.E: {error}\n")
    assert retold.refusal == error.refusal and retold.code == "TL301"
    again = pickle.loads(pickle.dumps(retold))
    assert (str(again), again.refusal) == (str(retold), error.refusal)


def test_the_first_compilations_in_eight_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks the backend's name up in each of them at once."""
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["torch_dynamo_backends"]["helion_tpu"]
    entry = importlib.metadata.EntryPoint("helion_tpu", value, "torch_dynamo_backends")
    registry.list_backends()
    started = threading.Barrier(8)

    class Slow:
        """The entry point, loaded by all threads before any goes on."""

        def load(self) -> Any:
            started.wait(60)
            return entry.load()

    monkeypatch.setitem(registry._BACKENDS, "helion_tpu", Slow())
    monkeypatch.delitem(registry._COMPILER_FNS, "helion_tpu", raising=False)
    monkeypatch.setattr(registry.lookup_backend, "__wrapped__", None, raising=False)
    x = torch.ones(3)

    def look_up(number: int) -> Any:
        return registry.lookup_backend("helion_tpu")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = set(pool.map(look_up, range(8)))
    assert len(found) == 1
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: torch.compile(lambda x: x * n, backend="helion_tpu")(x)[0].item(), range(8)))
    assert results == list(range(8))

"""What is kept between compilations: bounded, found again while in use, made again where it was dropped."""

from __future__ import annotations

import concurrent.futures
import gc
import linecache
import threading
from collections.abc import Generator

import jax.numpy as jnp
import pytest
import torch

import tpu_lowering
from tpu_lowering import session
from tpu_lowering.session import SESSION, Cache


class Value:
    """Something that weak references can be made to."""


@pytest.fixture
def cache() -> Generator[Cache[int, Value]]:
    made: Cache[int, Value] = Cache("a test", 2, "to be looked at")
    yield made
    del SESSION.caches["a test"]


def test_the_least_recently_used_entry_goes(cache: Cache[int, Value]) -> None:
    for key in (1, 2):
        cache.put(key, Value())
    assert cache.get(1) is not None
    cache.find(3, Value)
    assert [key for key, _ in cache.items()] == [1, 3]
    assert len(cache) == 2
    gc.collect()
    assert cache.get(2) is None


def test_a_value_that_is_in_use_is_found_again(cache: Cache[int, Value]) -> None:
    used = cache.find(1, Value)
    for key in (2, 3, 4):
        cache.find(key, Value)
    assert 1 not in dict(cache.items())
    assert cache.find(1, Value) is used


def test_none_is_a_value_like_others() -> None:
    asked: list[int] = []

    @session.kept(4, "to be looked at")
    def nothing(number: int) -> None:
        asked.append(number)

    try:
        assert nothing(1) is nothing(1) is None
        assert asked == [1]
    finally:
        del SESSION.caches["tests.test_session.nothing"]


def test_clear_tells_what_is_dropped() -> None:
    dropped: list[int] = []
    made: Cache[int, int] = Cache("a test that clears", 2, "to be looked at", dropped.append)
    try:
        for key in (1, 2, 3):
            made.put(key, key)
        assert dropped == [1]
        made.put(3, 4)  # in place of another value
        assert dropped == [1]
        tpu_lowering.clear()
        assert (dropped, len(made), made.get(2)) == ([1, 2, 3], 0, None)
    finally:
        del SESSION.caches["a test that clears"]


def test_threads_at_once_get_one_value(cache: Cache[int, Value]) -> None:
    barrier = threading.Barrier(8)

    def make() -> Value:
        barrier.wait(timeout=30)  # all of them are making one
        return Value()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: cache.find(1, make), range(8)))
    assert len(found) == 1


def test_names_and_bounds_are_checked(cache: Cache[int, Value]) -> None:
    with pytest.raises(ValueError, match="expected one cache of the name a test, got a second"):
        Cache("a test", 1, "")
    with pytest.raises(ValueError, match="expected a bound of at least one entry for another test, got 0"):
        Cache("another test", 0, "")


def test_every_cache_has_a_reason() -> None:
    for found in SESSION.caches.values():
        assert len(found.reason) > 20, found.name


def test_programs_work_after_clear_and_new_ones_are_compiled() -> None:
    @tpu_lowering.kernel_op("session_tests::scaled")
    def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
        return jnp.multiply(x, by)

    x = torch.randn(4, 128)
    compiled = torch.compile(lambda x: torch.softmax(scaled(x, 1.5), -1), backend="helion_tpu", options=FUSED)
    expected = torch.softmax(x * 1.5, -1)
    torch.testing.assert_close(compiled(x), expected)
    tpu_lowering.clear()
    assert not any(len(found) for found in SESSION.caches.values())
    torch.testing.assert_close(compiled(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(x), expected)


FUSED = {"fuse": "always"}
FACTOR = 2.0


def test_a_name_that_changes_after_clear_is_seen_by_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX keeps what it traced of a function inside; that a forgotten function reads another value now is not seen."""
    import jax

    @jax.jit
    def inner(x: jax.Array) -> jax.Array:
        return x * FACTOR

    @tpu_lowering.kernel_op("session_tests::outer")
    def outer(x: torch.Tensor) -> torch.Tensor:
        return inner(x)

    x = torch.ones(4)
    compiled = torch.compile(lambda x: outer(x) + 1.0, backend="helion_tpu")
    torch.testing.assert_close(compiled(x), x * 2 + 1)
    tpu_lowering.clear()
    torch._dynamo.reset()
    monkeypatch.setattr(f"{__name__}.FACTOR", 3.0)
    torch.testing.assert_close(compiled(x), x * 3 + 1)


def test_lines_of_generated_source_are_kept_as_long_as_their_entry() -> None:
    from tpu_lowering.codegen import load

    names = [f"written_{number}" for number in range(300)]
    for name in names:
        load.define(name, f"def {name}():\n    return {name!r}\n")
    kept = [name for name in names if linecache.getlines(f"<tpu_lowering {name}>")]
    assert kept == names[-SESSION.caches["codegen.load"].bound :]


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    tpu_lowering.clear()
    for found in SESSION.caches.values():
        monkeypatch.setattr(found, "bound", 1)


@pytest.mark.usefixtures("smallest")
def test_everything_is_right_with_one_entry_in_each_cache() -> None:
    """What is dropped in the middle of a compilation is made again."""

    @tpu_lowering.kernel_op("session_tests::scaled_again")
    def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
        return jnp.multiply(x, by)

    def program(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for by in (0.5, 2.0, 0.5):
            x = torch.softmax(scaled(x, by), -1) + torch.nn.functional.layer_norm(x, x.shape[-1:], w)
        heads = x.reshape(2, 2, -1, 64)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)

    torch.manual_seed(0)
    x, w = torch.randn(256, 128), torch.randn(128)
    compiled = torch.compile(program, backend="helion_tpu", options={**FUSED, "verify": True})

    def eager(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return program(x, w)

    torch.testing.assert_close(compiled(x, w), eager(x, w), rtol=1e-4, atol=1e-5)

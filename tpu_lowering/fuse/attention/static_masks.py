"""Masks that are known while a program is compiled: bands along the diagonal, of which no element is computed, and any
others, element by element."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

MOST = 1 << 26
"""Elements of the largest mask that is computed while compiling: 8192 queries by 8192 keys."""


@dataclasses.dataclass(frozen=True)
class StaticMask:
    """Which keys each query sees, the same in every head.

    Attributes:
        queries, keys: the mask's shape.
        bits: rows of the mask, eight elements to a byte, the first one highest; b"" for a band, ...
        first, last: ... in which query ``i`` sees the keys ``i + first`` to ``i + last``; None for no limit. The
            default is a causal mask.
    """

    queries: int
    keys: int
    bits: bytes = b""
    first: int | None = None
    last: int | None = 0

    @property
    def is_band(self) -> bool:
        return not self.bits

    @property
    def is_causal(self) -> bool:
        return self.is_band and (self.first, self.last) == (None, 0)

    @property
    def is_full(self) -> bool:
        """Whether it is a band that hides nothing."""
        return self.is_band and (self.first, self.last) == (None, None)

    @functools.cached_property
    def digest(self) -> bytes:
        """Equal for equal masks: what is kept by a mask does not keep the mask."""
        named = f"{self.queries} {self.keys} {self.first} {self.last} "
        return hashlib.sha256(named.encode() + self.bits).digest()

    @staticmethod
    def of(seen: np.ndarray[Any, Any]) -> StaticMask:
        """A mask from a bool array [queries, keys]."""
        queries, keys = seen.shape
        if seen.size:
            band = StaticMask._band(queries, keys, np.concatenate([seen[:0:-1, 0], seen[0]]))
            if band is not None and np.array_equal(seen, band.array):
                return band
        return StaticMask(queries, keys, np.packbits(seen).tobytes())

    @staticmethod
    def of_diagonals(queries: int, keys: int, seen: np.ndarray[Any, Any]) -> StaticMask | None:
        """A mask from what is seen on each diagonal, from that of the last query and the first key on: bool
        [queries + keys - 1]; None for a large one that is no band."""
        band = StaticMask._band(queries, keys, seen)
        if band is not None or queries * keys > MOST:
            return band
        return StaticMask.of(seen[np.arange(keys)[None, :] - np.arange(queries)[:, None] + queries - 1])

    @staticmethod
    def _band(queries: int, keys: int, seen: np.ndarray[Any, Any]) -> StaticMask | None:
        """The band that shows some diagonals; None if there are others between them, or none."""
        shown = np.flatnonzero(seen)
        if not shown.size or shown[-1] - shown[0] + 1 != shown.size:
            return None
        first, last = int(shown[0]) - queries + 1, int(shown[-1]) - queries + 1
        return StaticMask(
            queries, keys, b"", None if first == 1 - queries else first, None if last == keys - 1 else last
        )

    @functools.cached_property
    def array(self) -> np.ndarray[Any, Any]:
        """bool [queries, keys]: True where the query sees the key."""
        if self.is_band:
            return self.part(slice(0, self.queries), slice(0, self.keys))
        packed = np.frombuffer(self.bits, np.uint8)
        return np.unpackbits(packed, count=self.queries * self.keys).reshape(self.queries, self.keys).astype(bool)

    def part(self, queries: slice, keys: slice) -> np.ndarray[Any, Any]:
        """bool [queries, keys] of some of them."""
        if not self.is_band:
            return self.array[queries, keys]
        places = np.arange(keys.start, keys.stop)[None, :] - np.arange(queries.start, queries.stop)[:, None]
        seen = np.ones(places.shape, bool) if self.first is None else places >= self.first
        return seen if self.last is None else seen & (places <= self.last)

    @property
    def _bounds(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Of a band, the first key that each query sees, and the one after the last."""
        rows = np.arange(self.queries)
        low = np.zeros_like(rows) if self.first is None else np.clip(rows + self.first, 0, self.keys)
        high = np.full_like(rows, self.keys) if self.last is None else np.clip(rows + self.last + 1, 0, self.keys)
        return low, np.maximum(low, high)

    @property
    def seen(self) -> int:
        """How many pairs of a query and a key it leaves."""
        if not self.is_band:
            return int(self.array.sum())
        low, high = self._bounds
        return int((high - low).sum())

    @property
    def shows_all_queries(self) -> bool:
        """Whether each query sees a key."""
        if not self.is_band:
            return bool(self.array.any(axis=1).all())
        low, high = self._bounds
        return bool((high > low).all())

    def longer_band(self, longer: tuple[int, int]) -> StaticMask | None:
        """The band that ``lengthened`` is; None if it is none."""
        same = StaticMask(*longer, b"", self.first, self.last)
        is_hidden = longer[1] == self.keys or (self.last is not None and self.queries + self.last <= self.keys)
        return same if self.is_band and is_hidden and same.shows_all_queries else None

    def lengthened(self, longer: tuple[int, int]) -> StaticMask:
        """The mask for more queries and keys: keys that are added are hidden from queries that are not, and each query
        sees a key."""
        if (band := self.longer_band(longer)) is not None:
            return band
        queries, keys = longer
        rows = np.pad(self.array, ((0, queries - self.queries), (0, 0)), mode="edge")
        return StaticMask.of(np.pad(rows, ((0, 0), (0, keys - self.keys))))


def lengthened(mask: StaticMask | None, lengths: tuple[int, int], longer: tuple[int, int]) -> StaticMask | None:
    """A mask, or none, for rounded lengths of queries and keys."""
    if lengths == longer or (mask is None and lengths[1] == longer[1]):
        return mask
    return (StaticMask(*lengths, b"", None, None) if mask is None else mask).lengthened(longer)

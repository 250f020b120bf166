"""Memory of tensors that XLA owns, so that a program updates it in place.

XLA on the CPU reuses the memory of an argument for a result only where the memory is its own. A buffer that programs
update in part, such as a cache of keys and values, is therefore moved into an array once, and stays: its tensor looks
at the array's memory. Each call donates the array and gets the next one at the same place.

Only a tensor that nobody else can notice of is moved: in memory that torch allocated, dense, whole, without a view, and
held by no storage object, no DLPack capsule and no graph. Afterwards it can be viewed, saved and copied as before; its
storage cannot be resized.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Generator, Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat, errors
from tpu_lowering.runtime.imported_arguments import Input, Places

LEAST_BYTES = 1 << 16
"""Of a buffer that is moved: a smaller one is copied in less time than is saved."""

_known: weakref.WeakValueDictionary[int, OwnedMemory] = weakref.WeakValueDictionary()
"""By address. An entry goes with the tensor's storage."""

_moving = threading.Lock()


class OwnedMemory:
    """The memory of one tensor. Its storage holds this.

    Attributes:
        input: how an executable takes it.
        address: where it is.
        lock: held while a program runs on it.
    """

    def __init__(self, input_: Input, array: jax.Array) -> None:
        self.input, self._array = input_, array
        self.address = array.unsafe_buffer_pointer()
        self.lock = threading.Lock()
        self._call: tuple[compat.DirectCall, compat.Results, int] | None = None

    def given(self, call: Any, kept: compat.Results, position: int) -> jax.Array:
        """The array, to be donated to a call; ``replace`` follows, unless the call is interrupted.

        Args:
            call: a ``compat.DirectCall``.
            kept: where it puts what it gives.
            position: of the array's next value among that.

        Raises:
            TpuLoweringError: TL114, if an earlier call failed and took the memory with it.
        """
        if self._call is not None:
            earlier, results, at = self._call
            found = results.recovered(earlier)
            if found is not None:
                self._array = found[at]
            elif self._array.is_deleted():
                type_ = self.input.type
                raise errors.refuse(
                    "TL114",
                    f"{type_.dtype}{list(type_.shape)}",
                    "expected a buffer whose last update ended, got one that a failed call had taken",
                    "make the buffer anew, and find out why the call before failed",
                )
        self._call = (call, kept, position)
        return self._array

    def replace(self, array: jax.Array, tensor: torch.Tensor) -> None:
        """Enters what a call made of the array, at its place; autograd is told that the tensor changed."""
        if array.unsafe_buffer_pointer() != self.address:
            raise RuntimeError(f"expected an update in place at {self.address}, got one elsewhere")
        self._array, self._call = array, None
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def memory_of(tensor: torch.Tensor, places: Places) -> OwnedMemory | None:
    """The memory of an argument that is about to be updated; None where it stays the tensor's.

    Args:
        tensor: the argument.
        places: makes arrays of it, as the executable takes it.
    """
    known, input_ = _known.get(tensor.data_ptr()), places.input
    if known is not None:
        return known if known.input == input_ and input_.fits(tensor) else None
    if not _may_move(tensor, input_):
        return None
    with _moving:
        return _known.get(tensor.data_ptr()) or (_moved(tensor, places) if _may_move(tensor, input_) else None)


def _may_move(tensor: torch.Tensor, input_: Input) -> bool:
    size = input_.type.nbytes
    if size < LEAST_BYTES or type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.requires_grad:
        return False
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == size and tensor.storage_offset() == 0 and input_.fits(tensor)
    own = storage.resizable() and not storage.is_shared() and not tensor.is_pinned()
    del storage
    return whole and own and compat.is_alone_in_memory(tensor)


def _moved(tensor: torch.Tensor, places: Places) -> OwnedMemory | None:
    array = places.copy(tensor)
    if array is None:
        return None
    owner = OwnedMemory(places.input, array)
    memory = places.memory_at(owner.address)
    memory.owner = owner
    storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
        tensor.set_(storage, 0, tensor.shape, tensor.stride())  # type: ignore[call-overload]
    _known[owner.address] = owner
    return owner


@contextlib.contextmanager
def held(owners: Sequence[OwnedMemory | None]) -> Generator[None]:
    """A scope in which no other thread runs a program on some memory."""
    with contextlib.ExitStack() as stack:
        for owner in sorted((owner for owner in owners if owner is not None), key=lambda one: one.address):
            stack.enter_context(owner.lock)
        yield

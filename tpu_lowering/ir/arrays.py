"""Between torch tensors and JAX arrays on the CPU.

On the way to JAX nothing is copied where the layout allows: it goes through DLPack. JAX imports only dense row-major
memory, so anything else is copied first. Callers hold ``compat.enable_x64(True)`` while they import, or 64-bit values
would be narrowed. Arguments of programs take a quicker way, see ``runtime.imported_arguments``.

On the way to torch everything is copied that somebody can get hold of. Memory that torch did not allocate cannot be
resized or freed by the tensor's owner, which ``resize_``, ``out=`` and FSDP do; nor can a tensor's that was once seen
as a NumPy array (``tensor.numpy()``), so that is never made of a caller's tensor.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import jax
import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType, element_type


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no storage of its own (a fake or meta tensor)."""
    return tensor.device.type == "meta" or isinstance(tensor, compat.FakeTensor)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A JAX array with the tensor's contents, shape and dtype, sharing its memory where it is dense.

    The array must not outlive a mutation of the tensor that the reader should not see.
    """
    tensor = row_major(tensor)
    if tensor.numel() == 0:
        return jax.numpy.zeros(tuple(tensor.shape), TensorType.of(tensor).dtype)
    # A dimension of size 1 may have any stride; JAX would take it for another layout.
    return jax.dlpack.from_dlpack(tensor.reshape(-1).view(tensor.shape))


def row_major(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the same contents, row-major and without a lazy sign or conjugate; the same one if it is so."""
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.contiguous()


def to_torch(array: jax.Array) -> torch.Tensor:
    """A row-major torch tensor with the values of an array on the CPU, in memory of its own."""
    element = element_type(array.dtype)
    assert element is not None
    tensor = torch.empty(array.shape, dtype=element.torch)
    copy_into(tensor, array.block_until_ready(), tensor.nbytes)
    return tensor


def copy_into(tensor: torch.Tensor, array: jax.Array, nbytes: int) -> None:
    """Copies the elements of an array that is there, on the CPU, to a tensor's dense memory, one after the other."""
    if nbytes >= LARGE:
        prefer_large_pages(tensor.data_ptr(), nbytes)
    if nbytes:
        ctypes.memmove(tensor.data_ptr(), array.unsafe_buffer_pointer(), nbytes)


LARGE = 4 << 20  # bytes that hold a page of 2 MiB wherever they begin


def prefer_large_pages(address: int, nbytes: int) -> None:
    """Asks for pages of 2 MiB in memory that nothing was written to yet, where Linux can be asked.

    The first touch of a page, of 4 KiB otherwise, costs several times as much as copying it. It is advice: contents
    are the same with and without, and so they are if the kernel refuses.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None:
        return
    begin, end = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))


def borrowed(array: jax.Array) -> torch.Tensor:
    """A torch tensor in the memory of an array on the CPU, which it holds. It cannot be resized."""
    return torch.from_dlpack(compat.as_dlpack(array.block_until_ready())) if array.size else to_torch(array)


def poisoned(type_: TensorType) -> torch.Tensor:
    """Undefined memory made visible: NaN, or the largest value of a type that has no NaN.

    The values are those of ``torch.utils.deterministic.fill_uninitialized_memory``.
    """
    return torch.full(type_.shape, poison_value(type_), dtype=type_.element.torch)


def poison_value(type_: TensorType) -> Any:
    """The scalar that ``poisoned`` fills with."""
    element = type_.element
    if element.is_floating:
        return float("nan")
    if element.is_complex:
        return complex("nan")
    if element.torch == torch.bool:
        return True
    return int(np.iinfo(element.numpy).max)

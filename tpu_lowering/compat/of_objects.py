"""Private attributes of torch's objects: what operators, tensors and compiled functions say of themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from tpu_lowering import errors
from tpu_lowering.compat.lookup import private


# operators --------------------------------------------------------------------------------------------
def schema(target: Any) -> Any:
    """An operator's arguments and results by name, type and alias; None for what is no overload.

    ``torch.library`` has no reader for what a call of an operator means.
    """
    return getattr(target, "_schema", None)


def parsed_schema(text: str) -> Any:
    """A schema from its text, ``ns::op(Tensor x) -> Tensor``, before there is an operator of that name."""
    return private("torch", "torch._C", "parse_schema", "operators that are checked before they are defined")(text)


def forget_operators(library: torch.library.Library) -> None:
    """Has torch forget the operators that a library defined, as ``torch.library.custom_op`` does when a name is defined
    again; ``torch.library`` has only a scope for it."""
    library._destroy()  # type: ignore[attr-defined]


class _Sent:
    """What an operator object calls in place of what it called, with the hash that the object has by that."""

    def __init__(self, old: Any, new: Any) -> None:
        self.known, self.new = hash(old), new

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.new(*args, **kwargs)

    def __hash__(self) -> int:
        return self.known

    def __getattr__(self, name: str) -> Any:
        return getattr(self.new, name)


def send_calls(old: Any, new: Any) -> None:
    """Has an overload whose operator was forgotten, and its packet, call what is defined now under their name. Somebody
    may hold them, and what they called is freed: a call of them could end the process."""
    packet = old._overloadpacket
    old._op, packet._op = _Sent(old._op, new), _Sent(packet._op, new._overloadpacket)


def overload_name(overload: Any) -> str:
    """The short name of an overload, "" for the default one; its public ``__name__`` says "default" there."""
    return overload._overloadname


def can_decompose(overload: Any) -> bool:
    """Whether an operator is made of others by its own kernel, as AOTAutograd takes it apart."""
    return bool(overload._can_decompose())


# tensors ----------------------------------------------------------------------------------------------
def storage_number(tensor: torch.Tensor) -> int:
    """Which storage a tensor lies in: fake tensors' storages have no address in memory to compare."""
    return tensor.untyped_storage()._cdata


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor's memory was written in place; what is kept of its contents is current by this alone."""
    return tensor._version


def is_static_input(tensor: torch.Tensor) -> bool:
    """Whether Dynamo marked a tensor as one that stays between calls: a buffer of a module that it traced."""
    return hasattr(tensor, "_dynamo_static_input_type")


# compiled functions -----------------------------------------------------------------------------------
def function_behind(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """The function or module behind what ``torch.compile`` returned; any other as it is."""
    compiled = getattr(compiled, "_orig_mod", compiled)
    return getattr(compiled, "_torchdynamo_orig_callable", compiled)


def is_compiled_backward(node: Any) -> bool:
    """Whether a node of autograd's graph is that of a graph which AOTAutograd compiled.

    Each compiled graph has a class of its own, which has nothing but AOTAutograd's metadata in common.
    """
    module, why = "torch._functorch._aot_autograd.schemas", "backward of a compiled graph"
    known = private("torch", module, "ViewAndMutationMeta", why)
    return isinstance(getattr(getattr(node, "_forward_cls", None), "metadata", None), known)


def _holders(tensor: torch.Tensor) -> tuple[int, int, int]:
    storage = tensor.untyped_storage()
    count = private("torch", "torch._C", "_storage_Use_Count", "buffers that are updated in place")
    return tensor._use_count(), count(storage._cdata), sys.getrefcount(storage)  # type: ignore[attr-defined]


def is_alone_in_memory(tensor: torch.Tensor) -> bool:
    """Whether nobody but this tensor's own owners can reach its memory: no view, no ``.data``, no storage object, no
    DLPack capsule, nothing that was saved for a backward. False in a release that does not tell."""
    try:
        return _holders(tensor) == _holders(torch.empty(1))
    except (errors.TpuLoweringError, AttributeError):
        return False

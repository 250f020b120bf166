"""``aten`` and ``prims``: torch's operators by name, as far as the installed release has them.

Torch's own ``torch.ops.aten.foo`` is an ``AttributeError`` for an operator that a release lacks; a table that names it
could not be imported. Here it is an ``Absent``, which is false, equals no operator of a graph, and is no row.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tpu_lowering.compat.lookup import missing

MODULES = {
    "prims": "torch._inductor.inductor_prims",
    "_dtensor": "torch.distributed.tensor._collective_utils",
    "device_mesh": "torch.distributed._ops.device_mesh",
}
"""Modules that register some of a namespace's operators, imported when one of these is asked for first."""


class Absent:
    """An operator, or an overload of one, that the installed torch does not have."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"{self.name} (absent)"

    def __getattr__(self, short: str) -> Absent:
        if short.startswith("__"):
            raise AttributeError(short)
        return _kept(self, short, Absent(f"{self.name}.{short}"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises TL105: something that the release has led here, and needs what it has not."""
        raise missing("torch", self.name, "an operator that this program needs")


class Operator:
    """The overloads of one operator; called, torch chooses one of them."""

    def __init__(self, packet: Any, name: str) -> None:
        self.packet, self.name = packet, name

    def __getattr__(self, short: str) -> Any:
        if short.startswith("__"):
            raise AttributeError(short)
        return _kept(self, short, getattr(self.packet, short, None) or Absent(f"{self.name}.{short}"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.packet(*args, **kwargs)

    def overloads(self) -> list[str]:
        return list(self.packet.overloads())


class Namespace:
    """The operators of ``torch.ops.<name>``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, short: str) -> Any:
        if short.startswith("__") and (hasattr(object, short) or not hasattr(int, short)):  # aten has __lshift__
            raise AttributeError(short)
        packet, name = found(self.name, short), f"{self.name}.{short}"
        return _kept(self, short, Absent(name) if packet is None else Operator(packet, name))


def found(namespace: str, short: str) -> Any:
    """``torch.ops.<namespace>.<short>``, or None."""
    packet = getattr(getattr(torch.ops, namespace), short, None)
    if packet is None and namespace in MODULES:
        importlib.import_module(MODULES[namespace])
        packet = getattr(getattr(torch.ops, namespace), short, None)
    return packet


def _kept(owner: Any, short: str, value: Any) -> Any:
    """Makes what was looked up once a plain attribute."""
    setattr(owner, short, value)
    return value


aten: Any = Namespace("aten")
prims: Any = Namespace("prims")

"""What a pass is: a small frozen value that rewrites a graph and says what it did."""

from __future__ import annotations

from typing import Protocol

from torch import fx

from tpu_lowering.ir.actions import Action


class Pass(Protocol):
    """A rewrite of a normalised graph, which is valid before and after.

    ``name`` is a verb phrase. Calling the pass edits the graph in place and returns its actions; a pass
    that finds nothing to do changes nothing, and running it twice does what running it once does.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, graph: fx.Graph) -> list[Action]: ...

"""Choose launches: a Helion kernel is launched in the form that moves the fewest bytes, or takes the fewest cycles.

Before::

    k = kernel_call(bmm_into, (a, b, None))

After::

    k = kernel_call(bmm_into, (a, b, None))    # its loop is a dimension of the grid; or it has other blocks

The forms are: the launch as Helion's config describes it; with the pipeline that it runs in every step as a dimension
of its grid (``kernels/flat_grids.py``); and, for a kernel that has no config of its own, both with other blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from torch import fx

from tpu_lowering.fuse.choose.choices import Choice, Chooser, Form, Made, made
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.kernels.launch import Launch, Variant


@dataclasses.dataclass(frozen=True, eq=False)
class Launches:
    """The forms of one launch.

    Attributes:
        name: the kernel's name.
        labels: what each form is called.
        make: makes each launch; one may raise.
        text: what the launch does as it is.
        replaces_configs: whether some have other configs.
    """

    name: str
    labels: tuple[str, ...]
    make: tuple[Callable[[], Launch], ...]
    text: str
    replaces_configs: bool
    has_plain: bool = False

    @staticmethod
    def of(launch: Launch, replaces_configs: bool) -> Launches:
        """The forms of a launch, what is taken without further knowledge first."""
        make: dict[str, Callable[[], Launch]] = {}
        for label, found in forms(launch).items():
            make[label] = functools.partial(_itself, found)
        for variant in launch.variants if replaces_configs else ():
            make[variant.label] = functools.cache(functools.partial(_first_form, variant))
        return Launches(launch.name, tuple(make), tuple(make.values()), launch.text, replaces_configs)

    @property
    def known_by(self) -> Sequence[str]:
        return [self.text]

    @property
    def forms(self) -> Sequence[Form]:
        def build(make: Callable[[], Launch]) -> Made:
            return made(make())

        return [Form(label, functools.partial(build, make)) for label, make in zip(self.labels, self.make, strict=True)]


def _itself(launch: Launch) -> Launch:
    return launch


def _first_form(variant: Variant) -> Launch:
    """A launch under another config, in the form that is taken without further knowledge."""
    return next(iter(forms(variant.make()).values()))


def forms(launch: Launch) -> dict[str, Launch]:
    """The forms of a launch under its config, by label, what is taken without further knowledge first.

    A loop that carries one value, as a product does, is in the grid: libtpu's schedules of ``bmm`` are then 1.3 to 2.8
    times as short on tpu7x, v5e and v6e (``bench/kernels``). One that carries several stays in each step: of attention
    written by hand as one grid they are shorter on v5e and longer on tpu7x and v6e.
    """
    flat = launch.flattened
    if flat is None:
        return {"as it is": launch}
    both = {"loop in the grid": flat, "loop in each step": launch}
    return both if launch.carried == 1 else dict(reversed(both.items()))


@dataclasses.dataclass(frozen=True)
class ChooseLaunches:
    """See the module's docstring.

    Attributes:
        chooser: chooses between the forms; None takes the first.
    """

    chooser: Chooser | None = None
    name: str = "choose_launches"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        return [action for node in graphs.kernel_calls(graph) if (action := self._choose(node)) is not None]

    def _choose(self, node: fx.Node) -> Action | None:
        launch, given = graphs.kernel_of(node), graphs.operands_of(node)
        if not isinstance(launch, Launch) or any(given[at] is not None for at in launch.tied()):
            return None
        questions = [Launches.of(launch, with_configs) for with_configs in (True, False)[not launch.variants :]]
        answers = ((question, choice) for question in questions if (choice := self._ask(question)) is not None)
        question, choice = next(answers, (questions[-1], Choice(0, "the default")))
        if choice.kernel is None:
            return None
        chosen = question.make[choice.kernel]()
        if chosen is launch:
            return None
        graphs.set_kernel(node, chosen)
        reason = f"{launch.name}, {question.labels[choice.kernel]}: {choice.reason}"
        return Action("launched", node.name, graphs.source_line(node), "", reason, 0)

    def _ask(self, question: Launches) -> Choice | None:
        return self.chooser.choose(question) if self.chooser is not None and len(question.labels) > 1 else None

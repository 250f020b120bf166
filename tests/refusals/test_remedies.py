"""Mistakes of users, by the dozen: the text of each is compared word for word, and the remedy that it names is run.

The cases are in ``remedies/``: a file for options and devices, the declaration of kernels, kernels, their gradients, what
a graph may hold, what is compiled ahead of time, and commands.
"""

from __future__ import annotations

import pathlib

import pytest
import torch

from tests.refusals.remedies import MISTAKES, ahead, commands, declarations, gradients, kernels, operators, options

MODULES = (options, declarations, kernels, gradients, operators, ahead, commands)


@pytest.mark.parametrize("name", MISTAKES)
def test_the_text_and_what_it_leads_to(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("ahead"):
        pytest.importorskip("libtpu")
    monkeypatch.chdir(tmp_path)
    got, expected = MISTAKES[name]()
    torch.testing.assert_close(got, expected)


def test_there_are_many() -> None:
    assert len(MISTAKES) >= 50
    assert {name.partition(":")[0] for name in MISTAKES} == {module.__name__.rpartition(".")[2] for module in MODULES}

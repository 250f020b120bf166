"""``python -m tpu_lowering tune FILE:FUNCTION``: its table, what it keeps, and what it refuses."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import pytest

from tpu_lowering.__main__ import main
from tpu_lowering.fuse.choose.choices import Form, Score
from tpu_lowering.runtime.aot.choosing import CompilerChooser, Scores

MODEL = """
import torch

def example_inputs():
    return (torch.empty(8192, 512),)

def forward(x):
    return torch.softmax(x, -1)

def pointwise(x):
    return x + 1
"""

MIB = 1 << 20


@pytest.fixture
def model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A file, and a compiler that says the same every time."""

    def score(chooser: CompilerChooser, name: str, forms: Sequence[Form], scores: Scores) -> None:
        assert chooser.seconds == 7
        said = [Score(64 * MIB, 60_000), Score(32 * MIB, 70_000), Score(32 * MIB, 50_000)]
        said.append(Score(error="TL601, expected at most 16.00M of VMEM on v5e, got 20.00M"))
        scores[:] = [*said, *[None] * len(forms)][: len(forms)]

    monkeypatch.setattr(CompilerChooser, "_score", score)
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def test_prints_forms_and_keeps_them(model: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent / "kept"
    command = ["tune", f"{model}:forward", "--target", "v5e", "--seconds", "7", "--cache", str(folder)]
    assert main(command) == 0
    assert (
        capsys.readouterr().out
        == f"""\
{TABLE}
Kept in {folder}.
"""
    )
    assert any(path.is_file() for path in folder.rglob("*"))


def test_nothing_to_choose(model: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", f"{model}:pointwise", "--seconds", "7"]) == 0
    assert (
        capsys.readouterr().out
        == """\
Nothing to choose for tpu7x: no region and no launch has a second form.
Not kept: name a folder with --cache.
"""
    )


def test_refuses_a_chip_that_is_none(model: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", f"{model}:forward", "--target", "v3"]) == 1
    assert capsys.readouterr().err.startswith("[TL107] unknown target: 'v3'")


TABLE = """\
                                Forms for v5e, as its compiler says                                 
┏━━━━━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ what         ┃ form     ┃ HBM MiB ┃ cycles ┃ at least, us ┃                                      ┃
┡━━━━━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ softmax_rows │ XLA      │    64.0 │ 60,000 │         81.8 │                                      │
│              │ kernel 1 │    32.0 │ 70,000 │         46.6 │                                      │
│              │ kernel 2 │    32.0 │ 50,000 │         40.9 │ taken                                │
│              │ kernel 3 │       - │      - │            - │ TL601, expected at most 16.00M of    │
│              │          │         │        │              │ VMEM on v5e, got 20.00M              │
│              │ kernel 4 │       - │      - │            - │ not compiled: time was up            │
└──────────────┴──────────┴─────────┴────────┴──────────────┴──────────────────────────────────────┘"""

"""The README's Python runs as it stands."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "block.py"
    path.write_text(BLOCKS[number])
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    if "explain(" in BLOCKS[number]:
        assert "One XLA program. No allocation is left." in run.stdout

"""Scripts in processes of their own, with a time limit: one that hangs is a failure."""

from __future__ import annotations

import os
import pathlib
import sys
import textwrap

from tests.processes import forked

SECONDS = 240


def run(script: str, folder: pathlib.Path, **variables: str) -> str:
    """What a script prints, in a process that finds this package and stops after ``SECONDS``."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    surroundings = {"PYTHONPATH": os.pathsep.join([str(forked.ROOT), *sys.path]), "GLOO_SOCKET_IFNAME": "lo"}
    return forked.run(str(path), seconds=SECONDS, **surroundings, **variables)

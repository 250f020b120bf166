"""The tests of ``eight_devices`` in a process with eight CPU devices."""

from __future__ import annotations

import pathlib

from tests.runtime import with_devices


def test_on_eight_devices() -> None:
    with_devices.run(pathlib.Path(__file__).parent / "eight_devices", 8)

"""The tests of ``two_devices`` in a process with two CPU devices."""

from __future__ import annotations

import pathlib

from tests.runtime import with_devices


def test_on_a_second_device() -> None:
    with_devices.run(pathlib.Path(__file__).parent / "two_devices", 2)

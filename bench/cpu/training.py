"""A training step, forward and backward, of every model of the suite."""

from __future__ import annotations

import functools

from bench.cpu import models

measure = functools.partial(models.measure, form=models.Form(trained=True, tolerance=1e-3))

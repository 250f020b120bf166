"""The forward of every model of the suite in inference mode, in bfloat16."""

from __future__ import annotations

import functools

import torch

from bench.cpu import models

measure = functools.partial(models.measure, form=models.Form(dtype=torch.bfloat16, tolerance=5e-2))

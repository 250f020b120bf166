"""Pooling, convolutions and resizing: sizes at the edges, indices, strides of channels last, gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.semantics.arguments import floats, ints
from tests.semantics.eager_check import Case, both_ways, check

CHANNELS = torch.channels_last


def image(n: int) -> torch.Tensor:
    return floats(1, 2, n, 5)


def pixels(n: int) -> torch.Tensor:
    return image(n).contiguous(memory_format=CHANNELS)


def line(n: int) -> torch.Tensor:
    return floats(2, 3, n + 1)


POOLING = {
    "max": Case(lambda x: F.max_pool2d(x, 2), lambda n: (image(n),)),
    "max with indices": Case(lambda x: F.max_pool2d(x, 2, return_indices=True), lambda n: (image(n),)),
    "max, padded": Case(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), lambda n: (image(n),)),
    "max, dilated": Case(lambda x: F.max_pool2d(x, 2, 1, 0, 2), lambda n: (image(n),)),
    "max, rounded up": Case(lambda x: F.max_pool2d(x, 2, 3, ceil_mode=True), lambda n: (image(n),)),
    "max of channels last": Case(lambda x: F.max_pool2d(x, 2, return_indices=True), lambda n: (pixels(n),)),
    "max of NaN": Case(lambda x: F.max_pool1d(x.masked_fill(x > 1, torch.nan), 2), lambda n: (line(n),)),
    "max of integers": Case(lambda x: F.max_pool1d(x, 2), lambda n: (ints(2, n),)),
    "max of bfloat16": Case(lambda x: F.max_pool2d(x, 2), lambda n: (image(n).bfloat16(),)),
    "max of three dimensions": Case(lambda x: F.max_pool3d(x, 2), lambda n: (floats(1, 1, 2, n, 3),)),
    "max and back": Case(
        lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), lambda n: (floats(1, 2, n),)
    ),
    "average": Case(lambda x: F.avg_pool2d(x, 2), lambda n: (image(n),)),
    "average, padded": Case(lambda x: F.avg_pool2d(x, 3, 2, 1), lambda n: (image(n),)),
    "average without padding in the count": Case(
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), lambda n: (image(n),)
    ),
    "average, rounded up": Case(lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True), lambda n: (image(n),)),
    "average by another divisor": Case(lambda x: F.avg_pool2d(x, 2, divisor_override=3), lambda n: (image(n),)),
    "average of channels last": Case(lambda x: F.avg_pool2d(x, 2), lambda n: (pixels(n),)),
    "average of a line": Case(lambda x: F.avg_pool1d(x, 3, 1, 1), lambda n: (line(n),)),
    "average of bools is refused": Case(lambda x: F.avg_pool2d(x, 2), lambda n: (image(n) > 0,)),
    "norms": Case(lambda x: F.lp_pool2d(x, 2, 2), lambda n: (image(n),)),
    "adaptive average": Case(lambda x: F.adaptive_avg_pool2d(x, (3, 2)), lambda n: (image(n),)),
    "adaptive average to one": Case(lambda x: F.adaptive_avg_pool2d(x, 1), lambda n: (image(n),)),
    "adaptive average to more": Case(lambda x: F.adaptive_avg_pool1d(x, 7), lambda n: (line(n),)),
    "adaptive maximum": Case(lambda x: F.adaptive_max_pool2d(x, (2, 3), True), lambda n: (image(n),)),
    "gradient of the maximum": Case(
        lambda x: F.max_pool2d(x, 2, 1).square(), lambda n: (image(n).requires_grad_(),)
    ),
    "gradient of the average": Case(
        lambda x: F.avg_pool2d(x, 3, 2, 1).square(), lambda n: (image(n).requires_grad_(),)
    ),
    "gradient of the adaptive average": Case(
        lambda x: F.adaptive_avg_pool2d(x, 3).square(), lambda n: (image(n).requires_grad_(),)
    ),
}  # fmt: skip

POOLING |= {
    f"bags of rows, {name}": Case(
        lambda w, i, mode=mode: torch.ops.aten._embedding_bag(w, i, torch.tensor([0, 2, 2]), False, mode),
        lambda n: (floats(5, 2), torch.arange(n) % 5),
    )
    for mode, name in enumerate(("sums", "means", "maxima"))
}

CONVOLUTIONS = {
    "plain": Case(lambda x, w: F.conv2d(x, w), lambda n: (image(n), floats(3, 2, 2, 2))),
    "strided and padded": Case(lambda x, w: F.conv2d(x, w, None, 2, 1), lambda n: (image(n), floats(3, 2, 3, 3))),
    "by groups": Case(lambda x, w: F.conv2d(x, w, groups=2), lambda n: (image(n), floats(4, 1, 2, 2))),
    "dilated, of a line": Case(lambda x, w, b: F.conv1d(x, w, b, dilation=2), lambda n: (line(n), floats(2, 3, 2), floats(2))),
    "same padding": Case(lambda x, w: F.conv1d(x, w, padding="same"), lambda n: (line(n), floats(2, 3, 2))),
    "of channels last": Case(lambda x, w: F.conv2d(x, w), lambda n: (pixels(n), floats(3, 2, 2, 2))),
    "transposed": Case(
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1), lambda n: (image(n), floats(2, 3, 3, 3))
    ),
    "of patches": Case(lambda x, w, b: F.conv2d(x, w, b, 2), lambda n: (image(n + 1), floats(3, 2, 2, 2), floats(3))),
    "of patches of channels last": Case(lambda x, w: F.conv2d(x, w, None, 2), lambda n: (pixels(n), floats(3, 2, 2, 2))),
    "of lines, padded": Case(
        lambda x, w: F.conv2d(x, w, None, (2, 1), (0, 1)).square(),
        lambda n: (image(n).requires_grad_(), floats(3, 2, 2, 3).requires_grad_()),
    ),
    "of patches of volumes": Case(
        lambda x, w: F.conv3d(x, w, None, 2).square(),
        lambda n: (floats(2, 1, n + 1, 4, 4).requires_grad_(), floats(3, 1, 2, 2, 2).requires_grad_()),
    ),
    "of another type is refused": Case(lambda x, w: F.conv2d(x, w), lambda n: (image(n), floats(3, 2, 2, 2).double())),
    "gradients": Case(
        lambda x, w: F.conv2d(x, w, padding=1).square(),
        lambda n: (image(n).requires_grad_(), floats(3, 2, 2, 2).requires_grad_()),
    ),
}  # fmt: skip

RESIZING = {
    "nearest": Case(lambda x: F.interpolate(x, scale_factor=2), lambda n: (image(n),)),
    "nearest, exactly": Case(lambda x: F.interpolate(x, (3, 7), mode="nearest-exact"), lambda n: (image(n),)),
    "bilinear": Case(lambda x: F.interpolate(x, (3, 7), mode="bilinear"), lambda n: (image(n),)),
    "bilinear with corners": Case(
        lambda x: F.interpolate(x, (3, 7), mode="bilinear", align_corners=True), lambda n: (image(n),)
    ),
    "bilinear, antialiased": Case(
        lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True), lambda n: (image(n),)
    ),
    "bicubic": Case(lambda x: F.interpolate(x, (3, 7), mode="bicubic"), lambda n: (image(n),)),
    "by area": Case(lambda x: F.interpolate(x, (2, 3), mode="area"), lambda n: (image(n),)),
    "linear": Case(lambda x: F.interpolate(x, 7, mode="linear"), lambda n: (line(n),)),
    "pixels shuffled": Case(lambda x: F.pixel_shuffle(x, 2), lambda n: (floats(1, 4, n, 3),)),
    "pixels shuffled back": Case(lambda x: F.pixel_unshuffle(x, 2), lambda n: (floats(1, 1, n, 4),)),
    "padded by reflection": Case(lambda x: F.pad(x, (1, 2, 1, 1), "reflect"), lambda n: (image(n),)),
    "padded by its edge": Case(lambda x: F.pad(x, (2, 1), "replicate"), lambda n: (line(n),)),
    "padded in a circle": Case(lambda x: F.pad(x, (2, 1), "circular"), lambda n: (line(n),)),
    "cropped": Case(lambda x: F.pad(x, (-1, -1)), lambda n: (line(n),)),
    "unfolded": Case(lambda x: F.unfold(x, 2, padding=1), lambda n: (image(n),)),
    "sampled": Case(
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), lambda n: (image(n), floats(1, 3, n, 2))
    ),
}  # fmt: skip


@both_ways(POOLING)
def test_pooling(case: Case, dynamic: bool) -> None:
    check(case, dynamic)


@both_ways(CONVOLUTIONS)
def test_convolutions(case: Case, dynamic: bool) -> None:
    check(case, dynamic)


@both_ways(RESIZING)
def test_resizing(case: Case, dynamic: bool) -> None:
    check(case, dynamic)

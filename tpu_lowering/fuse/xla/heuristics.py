"""What XLA does by itself, in numbers: one frozen value that everything in ``fuse`` reads.

The numbers were read off programs that libtpu compiled, none off a run. ``tests/fuse/xla/test_heuristics.py`` has a
probe for each, or says why there is none: a release that decides otherwise fails there.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Heuristics:
    """What the compiler of one release does without our kernels. Shares are of a core's VMEM.

    Attributes:
        release: the libtpu that the numbers were read from.
        kernel_share: what a kernel may use, since the compiler keeps values between operations in VMEM too. A kernel
            that asks for all of it is compiled, but then what is made before it and used after it is written to HBM.
        blocks_share: what a kernel's blocks are planned for: the compiler adds temporaries of its own to what blocks,
            held twice, and values between them take.
        kept_scores: how large the scores of an attention may be that XLA keeps between its products. Larger ones are
            written for the softmax and read again.
        kept_scores_in_training: how large, with all that gradients are made of: the weights, and the gradients of
            weights and scores, four values of that size.
        kept_products: how large a matrix product may be that XLA keeps for what follows it.
        kept_rows: how large rows may be that XLA keeps wherever they come from. On tpu7x those of an encoder with 4096
            tokens of 768 bfloat16 elements (6 MiB) stay, and normalising them moves nothing.
        kept_pages: how large gathered keys and values may be together that XLA keeps between the gather and the
            product.
        page_passes: how often larger ones are moved: read from the pages, written, and read by the product.
        score_passes: how often scores that are not kept, or what is made of them, are moved: the product writes them,
            the softmax reads and writes them, and the second product reads the weights.
        gradient_score_passes: the same of an attention's gradients, where weights and two gradients are made as well.
        long_row: elements of a row from which on XLA reduces and uses it in two passes, where it makes one of shorter
            rows; one of 4096 is short.
        rotation_passes: how often XLA goes over rows at least to rotate them: pieces are written, and read again.
        running_sum_passes: how often for a running sum: sums of windows, and then what comes before each is added. It
            moves six times the least bytes.
    """

    release: str = "0.0.52"
    kernel_share: float = 0.75
    blocks_share: float = 0.5
    kept_scores: float = 0.375
    kept_scores_in_training: float = 0.25
    kept_products: float = 0.2
    kept_rows: float = 0.1
    kept_pages: float = 0.25
    page_passes: int = 3
    score_passes: int = 4
    gradient_score_passes: int = 8
    long_row: int = 8192
    rotation_passes: int = 1
    running_sum_passes: int = 2


HEURISTICS = Heuristics()

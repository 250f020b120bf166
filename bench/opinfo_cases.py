"""Which entries of torch's operator database are compiled; ``bench.opinfo`` says how.

The lists are kept, as it takes ten minutes to find them: ``largest_sample`` of every entry in float32, and
``aot.capture`` for tpu7x of each. Entries that cannot be captured at all (results whose size depends on values,
operators that CUDA alone has) are left out.
"""

from __future__ import annotations

LARGEST_NAMES = """
    grid_sampler_3d slice slice_scatter argsort msort sort nn.functional.adaptive_avg_pool3d searchsorted
    __rmatmul__ matmul _upsample_bilinear2d_aa nn.functional.dropout3d
    nn.functional.feature_alpha_dropout.with_train bmm.triton_optimized mode mH mT
    nn.functional.scaled_dot_product_attention to _chunk_cat nn.functional.grid_sample
    _unsafe_masked_index_put_accumulate nn.functional.conv3d nn.functional.conv_transpose3d nn.functional.glu
    grid_sampler_2d diagonal_scatter nn.functional.adaptive_avg_pool2d stft nn.functional.max_unpool3d bmm unfold
    unfold_copy nn.functional.adaptive_max_pool3d native_dropout_backward atleast_1d atleast_2d atleast_3d
    nn.functional.channel_shuffle clamp nn.functional.fractional_max_pool3d nn.functional.max_pool3d
    nn.functional.bilinear __getitem__ baddbmm masked.logaddexp nn.functional.dropout2d nn.functional.conv2d
    __radd__ __rdiv__
"""
"""The 50 entries with the largest samples, in bytes of all tensors as the database has them. Equal ones are in order of
their names."""

ROW_NAMES = """
    _batch_norm_with_update _native_batch_norm_legit _softmax_backward_data cumulative_trapezoid log_softmax
    masked.cumsum masked.log_softmax masked.normalize masked.softmax masked.softmin native_batch_norm
    native_layer_norm nn.functional.batch_norm nn.functional.cosine_similarity nn.functional.cross_entropy
    nn.functional.instance_norm nn.functional.layer_norm nn.functional.linear_cross_entropy
    nn.functional.multi_head_attention_forward nn.functional.normalize nn.functional.pad.circular
    nn.functional.rms_norm nn.functional.softmin renorm softmax
"""
"""Every other entry of which a kernel of rows was made when fusing went by the bytes of elements alone: most of them
move fewer bytes, and some would move more, which estimates have to see."""

LARGEST, ROWS = tuple(LARGEST_NAMES.split()), tuple(ROW_NAMES.split())
CASES = (*ROWS, *LARGEST)

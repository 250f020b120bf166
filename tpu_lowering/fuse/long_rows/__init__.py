"""Rows that fit VMEM in no block: kernels whose grid runs over the blocks of a row."""

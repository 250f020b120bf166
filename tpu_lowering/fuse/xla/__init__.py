"""What XLA does by itself for a TPU: layouts, fusions, what stays in VMEM."""

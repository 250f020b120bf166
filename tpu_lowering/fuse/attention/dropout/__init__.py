"""Attention whose weights are dropped: one kernel for it, and one for its gradients."""

"""Attention with its gradients, found in AOTAutograd's joint graph."""

"""Row reductions and what surrounds them, as one generated Pallas kernel where XLA would read the rows again."""

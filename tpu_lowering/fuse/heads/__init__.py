"""Matrix products whose factors or results are cut into heads and permuted."""

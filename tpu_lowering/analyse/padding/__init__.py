"""Which dynamic sizes may be rounded up, and what keeps results exact; one rule an operator."""

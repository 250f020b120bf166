"""From operators of a lowered graph to JAX functions: the table, and what needs no row of it."""

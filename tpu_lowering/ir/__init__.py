"""The vocabulary of all rooms: types, boxes, kernels and their calls, programs, chips, what is legal in a graph."""

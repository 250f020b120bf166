"""From Dynamo's graph to captured graphs, each compiled for the sizes it is called with."""

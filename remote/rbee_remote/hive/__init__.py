"""The hive: supervises the workers of a node, keeps its catalog of models, and ends by itself when it has no work."""

"""The hive: supervises the workers of a node, keeps its catalog of models, and ends by itself when it has no work.

`daemon` is where it begins. Nothing outside imports it: others ask it over its socket.
"""

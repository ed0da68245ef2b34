"""Models: what a ref names, where it comes from, and how it gets onto a node.

Others use `ref` (a name understood) and `provision` (a model brought to a node); the rest is theirs.
"""

"""Models: what a ref names, where it comes from, and how it gets onto a node."""

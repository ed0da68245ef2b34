"""The models of a node: catalog, downloads, and how a file is taken in."""

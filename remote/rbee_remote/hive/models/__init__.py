"""The models of a node: catalog, downloads, and how a file is taken in.

The hive uses `catalog`, `pulls` and `registration`; `download` is a process of its own.
"""

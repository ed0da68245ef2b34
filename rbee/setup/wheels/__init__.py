"""The keeper's wheel cache: what is in it, and how it gets there."""

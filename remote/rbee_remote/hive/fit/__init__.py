"""Whether a model fits: what the node has, what the model needs, and what is settled where nobody said.

The hive uses `scheduler.decide`, `options`, `needs`, `resources` and `meter`, mostly from `planning`.
"""

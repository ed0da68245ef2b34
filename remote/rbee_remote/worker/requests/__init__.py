"""A request from its text to its events: prompt, sampling, generation, journal.

`service` takes a request through it; `compute` fills the `Generation`, and `http` reads the `Journal`.
"""

"""A chat as the text that a model reads: its template, rendered in a process of its own, and what it left out.

`service` uses `render_pool.RenderPool` alone; `render_process` is what its processes run.
"""

"""`rbee infer`: one request through its eight phases. `infer` is where to begin reading.

Others use `infer.infer`, `infer.ready_worker` (for `rbee bench`) and the values in `request`.
"""

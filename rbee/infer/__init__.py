"""`rbee infer`: one request through its eight phases. `infer` is where to begin reading."""

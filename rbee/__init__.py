"""rbee, the keeper: runs where the user types. `rbee/infer/infer.py` is the place to begin reading."""
